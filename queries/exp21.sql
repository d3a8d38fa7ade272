-- id: exp21
-- title: What MLPs write for IT's and for PT's token where the answers part
-- needs: writeout
-- stream: raw
-- bootstrap: prompt
-- contrast: variant it - pt
-- plot: line x=layer hue=variant y="logits" numbers=logits hide=support_it_early,support_it_mid,against_early,against_mid
-- says: Where PT and IT part, an MLP of IT's late window moves the logit of IT's token less that of PT's by {margin_late_it}
--   (middle window {margin_mid_it}), one of PT's by {margin_late_pt}. Of IT's late {margin_late_it} the component against the
--   residual gives {against_late_it}.
-- about: At the first step where the two greedy answers to the bare text differ (view `first_diff`), each MLP's branch u is read
--   where it stands: `support` of a token = its logit of r + u less that of r, r the residual entering the MLP sub-block, through
--   the model's own head; `margin` = support of IT's token less that of PT's. `against` is the margin of u's component along -r
--   (0 where u.r >= 0): what rescaling alone does; the final norm undoes most of it. Window numbers are means over the layers of
--   METHODS 1.6's windows, which overlap where the model is deep enough (trap 10). Every prompt counts once. All of this is read
--   from stored residuals and MLP outputs; the conditions with grafts (B, D) and the 2 x 2 effects of the seed are not computed
--   here. The seed takes u before the norm that follows it in Gemma and OLMo (trap 6); here u is what the residual gets. Its
--   published figures (`*_native`) are of prompts in the chat template, where PT and IT read different texts.
-- source: METHODS 15; traps in METHODS 21 (6, 10)
WITH mine AS (
    SELECT *, support_it - support_pt AS margin FROM writeout WHERE event = 'first_diff'
), by_layer AS (
    UNPIVOT (SELECT variant, layer, prompt, margin, support_it, support_pt, against FROM mine)
    ON margin, support_it, support_pt, against INTO NAME measure VALUE value
), windows AS (
    UNPIVOT (SELECT variant, layer, prompt, margin, support_it, against, early, mid, late FROM mine)
    ON early, mid, late INTO NAME named VALUE inside
), regions AS (
    UNPIVOT (SELECT variant, prompt, named, margin, support_it, against FROM windows WHERE inside)
    ON margin, support_it, against INTO NAME measure VALUE value
), numbers AS (
    SELECT measure || '_' || named AS measure, variant, prompt, avg(value) AS total FROM regions GROUP BY ALL
)
SELECT measure, variant, layer, prompt, avg(value) AS total, 1 AS n FROM by_layer GROUP BY ALL
UNION ALL BY NAME
SELECT measure, variant, prompt, total, 1 AS n FROM numbers
UNION ALL BY NAME
SELECT measure || '_' || variant AS measure, prompt, total, 1 AS n FROM numbers
WHERE measure IN ('margin_mid', 'margin_late', 'against_late')
