-- id: 0I
-- title: Four formulas of steering along one direction
-- needs: scores(0I)
-- stream: native
-- bootstrap: prompt
-- plot: line x=alpha hue=formula panels=coherent,format,str
--   forest=format_mlp_scale_0,format_residual_scale_0,format_attn_scale_0,format_mlp_inject_0
-- says: With the direction's component taken out (alpha 0) of the late residuals, coherent replies
--   {coherent_residual_scale_0?become more|become fewer|show no clear response} ({coherent_residual_scale_0}, as a share)
--   and those of the form asked for {format_residual_scale_0?become more|become fewer|show no clear response}
--   ({format_residual_scale_0}); out of the MLP outputs form {format_mlp_scale_0?gains|suffers|shows no clear response}
--   ({format_mlp_scale_0}), out of the attention outputs it {format_attn_scale_0?gains|suffers|shows no clear response}
--   ({format_attn_scale_0}). Added at full length against the direction (mlp_inject, beta = -1), form
--   {format_mlp_inject_0?gains|suffers|shows no clear response} ({format_mlp_inject_0}): unlike in the PT/IT study's run,
--   something is added here.
-- about: IT's late blocks edited along d_mean (0A) by four formulas. alpha = 1 is IT as it is in all four, one
--   condition. Metrics as in A1.
--   - `mlp_scale` (A1's), `residual_scale`, `attn_scale`: the component along d_mean times alpha, in the MLP modules'
--     outputs, in the blocks' outputs, in the attention modules' outputs.
--   - `mlp_inject`: beta = alpha − 1 times the norm of the MLP output is added along the direction.
--   - The formulas are no equal doses: at alpha = 0 the additive one moves an output by its whole norm, the others by
--     the component alone, and an edited residual is edited again in each later block.
--   - d_mean comes from MLP outputs, so in residuals and attention outputs it is a borrowed direction.
--   - `METRIC_FORMULA_A`: alpha = A less alpha = 1 on the same prompts. `choice_generated` is the study's forced
--     choice (three tokens, no template); `choice_logprob` is another question (the likeliest choice).
-- measures:
--   - <metric> | <metric> | <metric> | <metric>
--   - <metric>_<formula>_<n> | <formula>, α = <n>: change of <metric> | <metric> | α = <n> less α = 1 on the
--     same prompts: <metric>
-- positions: Replies of IT under the edit; each prompt once.
-- pitfalls:
--   - no-op injection: The study's run of the additive formula changed alpha and left beta at 0. Its "flat" curve
--     equals the baseline to all digits and is not quoted here.
--   - pooled duplicate replies: The study counts re-generated replies again, this row does not.
--   - incoherent replies: Read `coherent` first.
-- published: Forced choice and reasoning under the residual formula at alpha 1 (the baseline, which belongs to all
--   formulas) and 0, for Gemma.
-- source: METHODS 5.2, 6 (0I), 18
WITH cells AS (
    SELECT metric, arm AS formula, dose AS alpha, coalesce(prompt, -1) AS prompt, value
    FROM behaviour
    WHERE sweep = '0I' AND metric IN ('str', 'format', 'answer', 'reasoning', 'alignment', 'coherent', 'harmful_refused',
        'harmful_complied', 'harmful_incoherent', 'harmless_refused', 'harmless_complied', 'harmless_incoherent',
        'choice_generated', 'choice_logprob', 'tokens')
)
SELECT metric AS measure, formula, alpha, prompt, value AS total, 1 AS n FROM cells
UNION ALL BY NAME
SELECT metric || '_' || formula || printf('_%g', alpha) AS measure, prompt, edited.value - base.value AS total, 1 AS n
FROM cells AS edited JOIN (SELECT metric, formula, prompt, value FROM cells WHERE alpha = 1) AS base USING (metric, formula, prompt)
WHERE alpha IN (0, 2)
