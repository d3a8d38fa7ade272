-- id: exp20
-- title: Grafts at the first differing token: whose token is picked?
-- needs: divergence
-- stream: raw
-- bootstrap: prompt
-- plot: line x=layer hue=condition panels=margin forest=b_mid_picks_it,b_late_picks_it,d_mid_picks_pt,d_late_picks_pt
-- says: On the shared text before PT's and IT's answers first differ (at step {step_mean} on average), IT's MLPs grafted
--   into PT's middle window make it pick IT's token in {b_mid_picks_it} of the prompts, in the late window in
--   {b_late_picks_it}: the middle does so {b_mid_minus_late?more often|less often|neither clearly more nor less often}
--   ({b_mid_minus_late}). PT's MLPs in IT's middle window bring PT's token in {d_mid_picks_pt}, in the late one in
--   {d_late_picks_pt}: the middle {d_mid_minus_late?more often|less often|neither clearly more nor less often}
--   ({d_mid_minus_late}).
-- about: Both models read the bare text. An event is the first step at which their greedy continuations differ (view
--   `first_diff`). Conditions: A = PT, C = IT, B_WINDOW = PT with IT's MLPs in the window, D_WINDOW = IT with PT's,
--   at all positions of the shared text. Windows: early, mid, late, earlymid, midlate, the last three blocks, the
--   last one. A and C are stored, the others are replays from the window's start.
--   - `picks_it`, `picks_pt`, `picks_other`: share of prompts in which the top token (of those real for both) is
--     IT's, PT's or neither. A need not pick PT's token, nor C IT's, in every event: continuations are decoded from a
--     cache and with the model's own logits, here one forward reads them (the study's records differ in 2 % of
--     events).
--   - `margin`: logit of IT's token less that of PT's, drawn at the edges of the windows, read by the recipient's own
--     head; layer -1 is the input of the first block.
--   - `moved`: by how much a graft moves the last margin toward the donor (B − A, C − D).
--   - `late_gain_a`, `late_gain_c`: margin after the late window less that before it.
-- measures:
--   - <move> | <move> | share of prompts | share of prompts in which the top token is this one
--   - margin | logit of IT's token less PT's | logits | at the edges of the windows, read by the recipient's
--     own head
--   - moved | margin moved toward the donor | logits | by how much a graft moves the last margin toward the
--     model that the MLPs are from
--   - <recipient>_<window>_picks_it | <recipient> <window> MLPs picks IT's token | share of prompts | share
--     of prompts in which the top token is IT's
--   - <recipient>_<window>_picks_pt | <recipient> <window> MLPs picks PT's token | share of prompts | share
--     of prompts in which the top token is PT's
--   - <recipient>_mid_minus_late | <recipient> middle less late MLPs, donor's token | share of prompts | how
--     much more often middle than late MLPs bring the donor's token
--   - step_mean | step of the first differing token | steps | mean over prompts
--   - late_gain_a | margin gained in the late window, PT | logits | margin after the late window less that
--     before it
--   - late_gain_c | margin gained in the late window, IT | logits | margin after the late window less that
--     before it
-- positions: The last token of the shared text of each event. Later differences have no shared prefix, and where one
--   continuation ends first there is no event.
-- pitfalls:
--   - double BOS: The study's templated prompts begin with two BOS tokens.
--   - overlapping windows: Windows overlap where the model is deep enough.
--   - endpoint coupling: Mid is the stronger window on token identity, unlike on the endpoint-bound KL.
-- published: The study's full run lets each condition decode on its own; its validation run (`*_validation`) reads
--   them out at the prefix, as here. Continuations have up to 64 tokens here, 128 there. `*_native` are of prompts in
--   the chat template, which need another stream.
-- source: METHODS 14
WITH events AS (
    SELECT * REPLACE (coalesce(prompt, -1) AS prompt, coalesce(step, -1) AS step), max(layer) OVER () AS last, min(layer) FILTER (condition = 'B_late') OVER () AS before_late
    FROM divergence
    WHERE event = 'first_diff'
), final AS (
    SELECT prompt, step, condition, margin, CASE WHEN top1 IS NULL THEN NULL WHEN top1 = it_token THEN 'it' WHEN top1 = pt_token THEN 'pt' ELSE 'other' END AS pick
    FROM events
    WHERE layer = last
), picks AS (
    SELECT prompt, condition, lower(condition) AS name, class, avg((pick = class)::INTEGER) AS share
    FROM final, (VALUES ('it'), ('pt'), ('other')) AS classes (class)
    WHERE pick IS NOT NULL
    GROUP BY ALL
), moved AS (
    SELECT grafted.prompt, grafted.condition,
        avg(CASE host.condition WHEN 'A' THEN grafted.margin - host.margin ELSE host.margin - grafted.margin END) AS moved
    FROM final AS grafted JOIN final AS host USING (prompt, step)
    WHERE host.condition = CASE WHEN starts_with(grafted.condition, 'B_') THEN 'A' ELSE 'C' END
        AND contains(grafted.condition, '_')
    GROUP BY ALL
), shares AS (
    SELECT prompt, name || '_picks_' || class AS measure, share FROM picks
    WHERE (starts_with(name, 'b_') AND class = 'it') OR (starts_with(name, 'd_') AND class = 'pt')
), paired AS (
    SELECT mid.prompt, left(mid.measure, 2) || 'mid_minus_late' AS measure, mid.share - late.share AS share
    FROM shares AS mid JOIN shares AS late ON mid.prompt = late.prompt AND replace(mid.measure, 'mid', 'late') = late.measure
    WHERE mid.measure IN ('b_mid_picks_it', 'd_mid_picks_pt')
)
SELECT 'picks_' || class AS measure, condition, prompt, share AS total, 1 AS n FROM picks
UNION ALL BY NAME
SELECT 'moved' AS measure, condition, prompt, moved AS total, 1 AS n FROM moved
UNION ALL BY NAME
SELECT 'margin' AS measure, condition, layer, prompt, avg(margin) AS total, 1 AS n FROM events
WHERE condition IN ('A', 'B_mid', 'B_late', 'C', 'D_mid', 'D_late')
GROUP BY ALL
UNION ALL BY NAME
SELECT measure, prompt, share AS total, 1 AS n FROM shares
WHERE measure IN ('b_mid_picks_it', 'b_late_picks_it', 'd_mid_picks_pt', 'd_late_picks_pt')
UNION ALL BY NAME
SELECT measure, prompt, share AS total, 1 AS n FROM paired
UNION ALL BY NAME
SELECT 'step_mean' AS measure, prompt, avg(step) AS total, 1 AS n FROM final WHERE condition = 'A' AND step >= 0 GROUP BY prompt
UNION ALL BY NAME
SELECT 'late_gain_' || lower(condition) AS measure, prompt,
    avg(margin) FILTER (layer = last) - avg(margin) FILTER (layer = before_late) AS total, 1 AS n
FROM events
WHERE condition IN ('A', 'C')
GROUP BY condition, prompt
