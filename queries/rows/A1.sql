-- id: A1
-- title: IT's late MLPs scaled along the mean direction: what it then writes
-- needs: scores(A1)
-- stream: native
-- bootstrap: prompt
-- plot: line x=alpha panels=format+answer+alignment+coherent,str,nll_pt+nll_it
--   forest=format_change_0,format_change_5,coherent_change_0,coherent_change_5
-- says: With the component along the PT-IT direction taken out of IT's late MLPs (alpha 0) replies of the form asked for
--   {format_change_0?become more|become fewer|show no clear response} ({format_change_0}, as a share) and structural words
--   {str_change_0?become more|become fewer|show no clear response} ({str_change_0}). With five times the component form
--   {format_change_5?improves|suffers|shows no clear response} ({format_change_5}), structural words {str_change_5?become
--   more|become fewer|show no clear response} ({str_change_5}), and coherent replies {coherent_change_5?become more|become
--   fewer|show no clear response} ({coherent_change_5}); with five times the component and its sign flipped form changes by
--   {format_change_minus5}, structural words by {str_change_minus5}, coherent replies by {coherent_change_minus5}. A random
--   direction added at full length changes structural words by {str_change_random}, coherent replies by
--   {coherent_change_random}.
-- about: IT writes replies while the component of its late MLP outputs along d_mean (0A) is multiplied by alpha, at
--   every position, prompt too. alpha = 1 is IT as it is, one condition with beta = 0. d_mean is of the native
--   captures, so of IT in its template.
--   - `str`: share of structural and discourse words and lone marks. `format`: share of GOV-FORMAT prompts whose
--     criteria all hold; a `blank` reply has no score (compare n).
--   - `answer`: replies that contain the right answer; `reasoning`: the same of CONTENT-REASON alone; `last_number`:
--     replies whose last number is right.
--   - `alignment`: SAFETY prompts refused or answered as they should be. `harmful_refused`, `harmful_complied`,
--     `harmful_incoherent`: classes of replies to prompts to decline; `harmless_*`: to prompts that only sound
--     harmful. A reply that is not coherent, or degenerate, counts as incoherent.
--   - `coherent`: replies that pass the study's rule (three words, six different characters, no word over 30 % of
--     eight or more, no new question); loops without spaces pass it. `degenerate`: replies that are a loop of
--     characters, words or phrases, or a string of symbols. `ended`: replies that end before their budget.
--   - `choice_generated`: the first letter within three tokens after the bare question with lettered choices.
--     `choice_logprob`: the choice whose text is the likeliest after the bare question. n is the prompts with
--     choices; the paper calls the former the latter.
--   - `nll_pt`, `nll_it`: nats a token of the reply under each model as it is, PT on the bare prompt, IT on the
--     templated one, mean over prompts.
--   - `*_change_A`: alpha = A less alpha = 1 on the same prompts. `*_change_random`: a random unit vector added (beta
--     = 1: the norm of each output).
--   - `*_spearman`: rank correlation of the means with alpha over the 14 alphas, no interval; a curve that falls to
--     both sides has a small one.
-- measures:
--   - <metric> | <metric> | <metric> | <metric>
--   - <metric>_change_random | random direction: change of <metric> | <metric> | a random unit vector added
--     at full length, less α = 1 on the same prompts: <metric>
--   - <metric>_change_<n> | α = <n>: change of <metric> | <metric> | α = <n> less α = 1 on the same prompts:
--     <metric>
--   - <metric>_spearman | rank correlation with α: <metric> | Spearman's rho | rank correlation of the 14
--     means with α: <metric>
-- positions: Free greedy replies to every prompt, each counted once: only real tokens, at most as many as the
--   captures' continuations have (the study: 200).
-- pitfalls:
--   - pooled duplicate replies: The study pools re-generated replies, so its intervals are too narrow; its
--     `mmlu_mixed` is half free-form, half forced choice.
--   - double BOS: Here IT has its template and one BOS. Gemma's published direction was extracted without a template.
--   - MLP before post-norm: The edit acts on the MLP's output before any norm that follows; the study's README writes
--     the residual instead.
--   - incoherent replies: Refusals come as shares of three classes. In the study's judged S1 an incoherent reply is a
--     third of a refusal, in S2 a false one.
--   - commitment at alpha 0: What steering does to convergence is no part of this row.
-- published: Gemma's levels, named `METRIC@A`, and rank correlations. They may be of a run without a template
--   (A1_notmpl): the study's prose and notes disagree. `g1`, `g2`, `s1`, `s2` are an LLM judge's, which this row does
--   without.
-- source: METHODS 5.2 to 5.4, 18
WITH cells AS (
    SELECT metric, arm, dose AS alpha, coalesce(prompt, -1) AS prompt, value
    FROM behaviour
    WHERE sweep = 'A1' AND metric IN ('str', 'format', 'answer', 'reasoning', 'last_number', 'alignment', 'coherent', 'degenerate',
        'harmful_refused', 'harmful_complied', 'harmful_incoherent', 'harmless_refused', 'harmless_complied',
        'harmless_incoherent', 'choice_generated', 'choice_logprob', 'nll_pt', 'nll_it', 'blank', 'tokens', 'ended')
), changes AS (
    SELECT metric, prompt, CASE WHEN arm = 'inject_random' THEN 'random' WHEN alpha < 0 THEN 'minus5' ELSE printf('%g', alpha) END
        AS dose, edited.value - base.value AS change
    FROM cells AS edited JOIN (SELECT metric, prompt, value FROM cells WHERE arm = 'd_mean' AND alpha = 1) AS base
        USING (metric, prompt)
    WHERE (arm = 'd_mean' AND alpha IN (-5, 0, 5)) OR (arm = 'inject_random' AND alpha = 1)
), means AS (
    SELECT metric, alpha, round(avg(value), 9) AS mean FROM cells WHERE arm = 'd_mean' GROUP BY ALL
), ranks AS (
    SELECT metric, rank() OVER (PARTITION BY metric ORDER BY alpha) AS dose,
        rank() OVER (PARTITION BY metric ORDER BY mean) + count(*) OVER (PARTITION BY metric, mean) / 2 AS outcome
    FROM means
)
SELECT metric AS measure, alpha, prompt, value AS total, 1 AS n FROM cells WHERE arm = 'd_mean'
UNION ALL BY NAME
SELECT metric || '_change_' || dose AS measure, prompt, change AS total, 1 AS n FROM changes
UNION ALL BY NAME
SELECT metric || '_spearman' AS measure, corr(dose, outcome) AS estimate, 'doses' AS unit FROM ranks GROUP BY metric
