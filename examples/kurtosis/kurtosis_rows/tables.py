"""The table `resid_kurtosis`."""

import actlake


@actlake.table(
    "resid_kurtosis",
    [actlake.Column("kurtosis", "float32", "excess kurtosis of the residual", unit="1")],
    reads=["resid"],
    version=1,
)
def resid_kurtosis(rows, context):
    """Excess kurtosis of the residual at each boundary."""
    resid = rows["resid"]  # float32 [n, boundary, d_model]
    centred = resid - resid.mean(-1, keepdims=True)
    return {"kurtosis": (centred**4).mean(-1) / (centred**2).mean(-1) ** 2 - 3}  # [n, boundary]
