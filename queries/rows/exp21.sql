-- id: exp21
-- title: What MLPs write for IT's and for PT's token, at the first differing token
-- needs: writeout, writeout(late)?
-- stream: raw
-- bootstrap: prompt
-- contrast: variant it - pt
-- plot: line x=layer hue=variant panels=margin,against
--   forest=late_weight_margin,upstream_margin,interaction_margin,margin_mid,margin_late
-- says: Where PT and IT first differ, an MLP of IT's late window moves the logit of IT's token less that of PT's by
--   {margin_late_it} (middle window {margin_mid_it}), one of PT's by {margin_late_pt}. Of IT's late {margin_late_it} the
--   component against the residual gives {against_late_it}. [Late MLPs exchanged: IT's rather than PT's write
--   {late_weight_margin?more|less|no clearly different amount} ({late_weight_margin} on average over both hosts), IT's
--   residual rather than PT's makes late MLPs write {upstream_margin?more|less|no clearly different amount}
--   ({upstream_margin}); the interaction is {interaction_margin}.]
-- about: At the first step where the two greedy continuations of the bare text differ (view `first_diff`), what each
--   MLP's branch u writes for the two tokens.
--   - `support` of a token: its logit of r + u less that of r, through the model's own head; r is the residual
--     entering the MLP sub-block. `margin`: support of IT's token less that of PT's.
--   - `against`: the margin of u's component along −r (0 where u·r >= 0), what rescaling alone does; the final norm
--     undoes most of it.
--   - Window numbers are means over the layers of the windows of METHODS 1.6. All of this is read from stored
--     residuals and MLP outputs.
--   - The 2 × 2 effects also take B_late, the PT with IT's MLPs in the late window, and D_late, the IT with the PT's,
--     replayed from the window's start, each read by its recipient's head, late window, per prompt: `late_weight` =
--     half of (B_late − A) + (C − D_late), `upstream` = half of (D_late − A) + (C − B_late), `interaction` = (C −
--     D_late) − (B_late − A), of `_margin` (as published) and of `_support_it`.
-- measures:
--   - margin | what an MLP writes for IT's token rather than PT's | logits | support of IT's token less that
--     of PT's
--   - support_it | what an MLP writes for IT's token | logits | logit with the MLP's output less without,
--     through the model's own head
--   - support_pt | what an MLP writes for PT's token | logits | logit with the MLP's output less without,
--     through the model's own head
--   - against | margin of the component against the residual | logits | what rescaling alone does
--   - <support>_<window>_<variant> | <variant>'s <window> MLPs, <support> | logits | mean over the layers of
--     the window
--   - <support>_<window> | <window> MLPs, <support> | logits | mean over the layers of the window
--   - against_<window>_<variant> | <variant>'s <window> MLPs, against the residual | logits | margin of the
--     component against the residual, mean over the layers of the window
--   - against_<window> | <window> MLPs, against the residual | logits | margin of the component against the
--     residual, mean over the layers of the window
--   - <effect>_<support> | <effect>, <support> | logits | effect on what late MLPs write, per prompt
-- positions: The last token of the shared text of each event; every prompt counts once.
-- pitfalls:
--   - MLP before post-norm: The study takes u before the norm that follows it in Gemma and OLMo; here u is what the
--     residual gets.
--   - overlapping windows: Windows overlap where the model is deep enough.
-- published: All `*_native`: of prompts in the chat template, where PT and IT read different texts.
-- source: METHODS 15
WITH mine AS (
    SELECT *, support_it - support_pt AS margin FROM writeout WHERE event = 'first_diff'
), own AS (
    FROM mine WHERE condition IN ('A', 'C')
), by_layer AS (
    UNPIVOT (SELECT variant, layer, prompt, margin, support_it, support_pt, against FROM own)
    ON margin, support_it, support_pt, against INTO NAME measure VALUE value
), windows AS (
    UNPIVOT (SELECT variant, layer, prompt, margin, support_it, against, early, mid, late FROM own)
    ON early, mid, late INTO NAME named VALUE inside
), regions AS (
    UNPIVOT (SELECT variant, prompt, named, margin, support_it, against FROM windows WHERE inside)
    ON margin, support_it, against INTO NAME measure VALUE value
), numbers AS (
    SELECT measure || '_' || named AS measure, variant, prompt, avg(value) AS total FROM regions GROUP BY ALL
), cells AS (
    SELECT measure, prompt, avg(value) FILTER (condition = 'A') AS a, avg(value) FILTER (condition = 'B_late') AS b,
        avg(value) FILTER (condition = 'C') AS c, avg(value) FILTER (condition = 'D_late') AS d
    FROM (UNPIVOT (SELECT condition, prompt, margin, support_it FROM mine WHERE late) ON margin, support_it INTO NAME measure VALUE value)
    GROUP BY ALL
    HAVING count(DISTINCT condition) = 4
), effects AS (
    UNPIVOT (
        SELECT measure AS of_what, prompt, (b - a + c - d) / 2 AS late_weight, (d - a + c - b) / 2 AS upstream, c - d - b + a AS interaction,
            b - a AS late_pt, c - d AS late_it
        FROM cells
    )
    ON late_weight, upstream, interaction, late_pt, late_it INTO NAME effect VALUE value
)
SELECT measure, variant, layer, prompt, avg(value) AS total, 1 AS n FROM by_layer GROUP BY ALL
UNION ALL BY NAME
SELECT measure, variant, prompt, total, 1 AS n FROM numbers
UNION ALL BY NAME
SELECT measure || '_' || variant AS measure, prompt, total, 1 AS n FROM numbers
WHERE measure IN ('margin_mid', 'margin_late', 'against_late')
UNION ALL BY NAME
SELECT effect || '_' || of_what AS measure, prompt, value AS total, 1 AS n FROM effects
