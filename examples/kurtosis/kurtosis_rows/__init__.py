"""Rows about the kurtosis of the residual stream: the .sql files beside this one."""
