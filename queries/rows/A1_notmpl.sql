-- id: A1_notmpl
-- title: A1 without the chat template
-- needs: scores(A1_notmpl)
-- stream: native
-- bootstrap: prompt
-- plot: line x=alpha hue=template panels=blank,str,coherent
--   forest=blank_raw_minus_chat,coherent_raw_minus_chat,coherent_change_0,coherent_change_5
-- says: On bare prompts {blank_raw_minus_chat?more|fewer|about as many} of the replies of IT as it is are blank
--   {blank_raw_minus_chat?than|than|as} in its template ({blank_raw_minus_chat}, as a share) and
--   {coherent_raw_minus_chat?more|fewer|about as many} coherent ({coherent_raw_minus_chat}). There the share of coherent
--   replies {coherent_change_0?rises|falls|shows no clear response} when the component along the PT-IT direction is taken
--   out (alpha 0, {coherent_change_0}) and {coherent_change_5?rises|falls|shows no clear response} at five times the
--   component ({coherent_change_5}); structural words {str_change_0?become more|become fewer|show no clear response} at 0
--   ({str_change_0}) and {str_change_5?become more|become fewer|show no clear response} at 5 ({str_change_5}). Form, of
--   the replies that are not blank, changes by {format_change_0} and {format_change_5}.
-- about: A1 with IT reading the bare prompt (`raw`), beside the templated one (`chat`). The direction is the same, of
--   the native captures, so of IT in its template. Metrics as in A1.
--   - `blank`: replies without a word; they have no `format` score. A model that ends its turn at once on bare text
--     leaves few prompts to compare: see n.
--   - `*_raw_minus_chat`: bare less templated prompt, at alpha = 1.
--   - `*_change_A`: bare prompts, alpha = A less alpha = 1. `*_apart_A`: that change less the same in the template.
-- measures:
--   - <metric> | <metric> | <metric> | <metric>
--   - <metric>_raw_minus_chat | bare prompt less template: <metric> | <metric> | bare less templated prompt
--     at α = 1, on the same prompts: <metric>
--   - <metric>_change_<n> | bare prompt, α = <n>: change of <metric> | <metric> | bare prompts, α = <n> less
--     α = 1: <metric>
--   - <metric>_apart_<n> | bare prompt less template, α = <n>: change of <metric> | <metric> | the change on
--     bare prompts less that in the template: <metric>
-- positions: As A1: free greedy replies, each prompt once.
-- pitfalls:
--   - pooled duplicate replies: The study counts re-generated replies again, this row does not.
--   - double BOS: The study's Gemma direction was extracted from IT without a template, and its A1 numbers may be of
--     such a run; they are quoted in A1.
--   - incoherent replies: Read `coherent` and `blank` first.
-- published: none; the study's figures of this row are plots without numbers.
-- source: METHODS 5.1 to 5.4, 18
WITH cells AS (
    SELECT metric, arm AS template, dose AS alpha, coalesce(prompt, -1) AS prompt, value
    FROM behaviour
    WHERE sweep = 'A1_notmpl' AND metric IN ('str', 'format', 'answer', 'alignment', 'coherent', 'blank', 'harmful_refused',
        'harmful_complied', 'harmful_incoherent', 'harmless_refused', 'harmless_complied', 'harmless_incoherent', 'tokens', 'ended')
), base AS (
    SELECT metric, template, prompt, value FROM cells WHERE alpha = 1
), changes AS (
    SELECT metric, prompt, printf('%g', alpha) AS dose, max(edited.value - base.value) FILTER (template = 'raw') AS raw,
        max(edited.value - base.value) FILTER (template = 'chat') AS chat
    FROM cells AS edited JOIN base USING (metric, template, prompt)
    WHERE alpha IN (0, 5)
    GROUP BY ALL
)
SELECT metric AS measure, template, alpha, prompt, value AS total, 1 AS n FROM cells
UNION ALL BY NAME
SELECT metric || '_raw_minus_chat' AS measure, prompt, raw.value - chat.value AS total, 1 AS n
FROM base AS raw JOIN base AS chat USING (metric, prompt)
WHERE raw.template = 'raw' AND chat.template = 'chat'
UNION ALL BY NAME
SELECT metric || '_change_' || dose AS measure, prompt, raw AS total, 1 AS n FROM changes WHERE raw IS NOT NULL
UNION ALL BY NAME
SELECT metric || '_apart_' || dose AS measure, prompt, raw - chat AS total, 1 AS n FROM changes WHERE raw - chat IS NOT NULL
