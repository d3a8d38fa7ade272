-- id: exp13A
-- title: Tokens that IT's late MLPs support or suppress in the PT
-- needs: graft(B_early), graft(B_early_tuned)?, graft(B_mid), graft(B_mid_tuned)?, graft(B_late), candidates(B_late),
--   graft(B_late_tuned)?, candidates(B_late_tuned)?, lens(raw)@pt, lens(tuned)@pt?, vocab, words@pt
-- stream: teacher
-- bootstrap: prompt
-- tokens: supported_content_raw supported_content_tuned supported_format_raw supported_format_tuned supported_function_other_raw
--   supported_function_other_tuned suppressed_content_raw suppressed_content_tuned suppressed_format_raw suppressed_format_tuned
--   suppressed_function_other_raw suppressed_function_other_tuned rank_gain_content_early_raw rank_gain_content_early_tuned
--   rank_gain_content_mid_raw rank_gain_content_mid_tuned rank_gain_content_late_raw rank_gain_content_late_tuned
--   rank_gain_format_late_raw rank_gain_format_late_tuned rank_gain_function_other_early_raw rank_gain_function_other_early_tuned
--   rank_gain_function_other_mid_raw rank_gain_function_other_mid_tuned rank_gain_function_other_late_raw
--   rank_gain_function_other_late_tuned improved_content_late_raw improved_content_late_tuned
-- plot: line x=layer hue=class panels=rank_gain_raw forest=net_content_raw,net_format_raw,net_function_other_raw
-- says: With IT's MLPs in its late blocks the PT's top token is another in {changed_raw} of its final 20 % layers' predictions.
--   The new one is content in {supported_content_raw} of these, a mark of format in {supported_format_raw}, a function word or
--   other in {supported_function_other_raw}; the one before in {suppressed_content_raw}, {suppressed_format_raw} and
--   {suppressed_function_other_raw}: content is {net_content_raw?supported more often than suppressed|suppressed more often than
--   supported|supported about as often as suppressed} ({net_content_raw})[, with the tuned lens {net_content_tuned}]. Where the
--   answer's next token is content it {rank_gain_content_late_raw?gains|loses|neither gains nor loses} ranks there
--   ({rank_gain_content_late_raw}; {improved_content_late_raw} of such tokens gain), format {rank_gain_format_late_raw}, others
--   {rank_gain_function_other_late_raw}[, the end of an answer {rank_gain_end_late_raw}]; for content mid MLPs give
--   {rank_gain_content_mid_raw}, early ones {rank_gain_content_early_raw}. The next token is on top for the first time in the
--   final 20 % for {first_top1_late_a_raw} of tokens without and {first_top1_late_b_raw} with late MLPs, never for
--   {first_top1_never_a_raw} and {first_top1_never_b_raw}. Of the 20 likeliest tokens {entered_content_raw} of content,
--   {entered_format_raw} of format and {entered_function_other_raw} others are new (left: {left_content_raw}, {left_format_raw},
--   {left_function_other_raw}; Jaccard index {jaccard_raw}).
-- about: A' and B as in exp11: the PT, on its raw prompt and IT's continuation, as it is and with IT's MLPs in a
--   window of blocks. All numbers are over layers floor(0.8 L) and up, through the PT's lens.
--   - Classes: `format` (punctuation, structure and discourse markers), `content`, `function_other` (function words
--     and the rest, special tokens too). A top token is classed by its own text, so that a piece of a word is
--     content; the continuation's tokens by the word they are part of. Special tokens that end a continuation are
--     kept apart as `end`: the PT seldom expects them, and a few of them would carry a whole class's mean.
--   - `changed`: share of (token, layer) whose top token is another with late MLPs. Among these `supported_*` is the
--     class of B's top token, `suppressed_*` that of A's, `net_*` the difference of the shares.
--   - `rank_gain_CLASS_WINDOW`: places that the next token gains (rank without − rank with, 1 is the top), mean over
--     the layers, by its class. Few tokens far down carry such a mean. `improved`: share of tokens whose gain is
--     above zero. The figure shows the gain at each layer with late MLPs; it is zero below them.
--   - `first_top1_PHASE_a` and `_b` (late MLPs): phase of the first layer where no token is likelier than the next
--     one: early below 0.4 L, late from floor(0.8 L), mid between, never. `dfirst_*` is B − A'.
--   - `entered_*`, `left_*`: tokens among the 20 likeliest with late MLPs and not without, and the reverse, in a
--     layer. `jaccard`: of both sets.
--   - Pooled over pairs: the mean of the pairs' numbers, and `*_token_weighted` of all tokens alike, as in the study.
-- measures:
--   - rank_gain_<lens> | ranks that the next token gains, <lens> | ranks | rank without less rank with IT's
--     late MLPs of the answer's next token, by its class
--   - changed_<lens> | top tokens that change, <lens> | share of predictions | share of tokens and late
--     layers whose top token is another with IT's late MLPs
--   - supported_<class>_<lens> | new top tokens: <class>, <lens> | share of changes | share of the changed
--     predictions whose new top token is of this class
--   - suppressed_<class>_<lens> | old top tokens: <class>, <lens> | share of changes | share of the changed
--     predictions whose old top token is of this class
--   - net_<class>_<lens> | <class>, <lens> | share of changes | new less old top tokens of this class
--   - rank_gain_<class>_<window>_<lens> | ranks gained by <class>, <window> MLPs, <lens> | ranks | mean over
--     the final 20 % of layers of the ranks that the next token gains
--   - improved_<class>_<window>_<lens> | <class> that gain, <window> MLPs, <lens> | share of tokens | share
--     of tokens whose mean rank gain is above zero
--   - first_top1_<phase>_<side>_<lens> | next token first on top: <phase>, <side>, <lens> | share of tokens |
--     where no token is likelier than the next one for the first time
--   - dfirst_top1_<phase>_<lens> | change of next token first on top: <phase>, <lens> | share of tokens |
--     with late MLPs less without
--   - entered_<class>_<lens> | <class> new among the 20 likeliest, <lens> | tokens | tokens among the 20
--     likeliest with late MLPs and not without, in a layer
--   - left_<class>_<lens> | <class> gone from the 20 likeliest, <lens> | tokens | tokens among the 20
--     likeliest without late MLPs and not with, in a layer
--   - jaccard_<lens> | overlap of the 20 likeliest, <lens> | Jaccard index | shared over all of both sets
-- positions: As exp11, position set c.
-- pitfalls:
--   - overlapping windows: Mid shares blocks with late.
-- published: Pooled over five families by the tuned lens over masked logits (METHODS 1.4; ours are whole), with a
--   probe on the last layer too. The word lists are as long as ours, not the same, so that shares are comparable, not
--   equal.
-- source: METHODS 10, 18 (word classes), 8
WITH classes (word_class, class) AS (
    VALUES ('PUNCTUATION', 'format'), ('STRUCTURAL', 'format'), ('DISCOURSE', 'format'), ('CONTENT', 'content'),
        ('FUNCTION', 'function_other'), ('OTHER', 'function_other')
), named AS (
    SELECT token_id, class FROM vocab JOIN classes USING (word_class)
), targets AS (
    SELECT prompt, step, CASE WHEN is_special THEN 'end' ELSE class END AS class
    FROM words JOIN classes ON word_class = target_class JOIN vocab ON token_id = target
    WHERE variant = 'pt'
), base AS (
    SELECT lens, prompt, step, layer, top1, rank_target, class, max(layer) OVER () + 1 AS layers
    FROM lens JOIN targets USING (prompt, step)
    WHERE variant = 'pt' AND layer >= 0
), cells AS (
    SELECT split_part(condition, '_', 2) AS "window", lens, prompt, step, layer, layers, class, layer >= floor(0.8 * layers) AS late,
        base.top1 AS top1_a, edited.top1 AS top1_b, base.rank_target AS rank_a, edited.rank_target AS rank_b, rank_a - rank_b AS gain
    FROM (FROM graft WHERE condition IN ('B_early', 'B_mid', 'B_late')) AS edited JOIN base USING (lens, prompt, step, layer)
), changed AS (
    SELECT lens, prompt, a.class AS class_a, b.class AS class_b
    FROM cells JOIN named AS a ON a.token_id = top1_a JOIN named AS b ON b.token_id = top1_b
    WHERE "window" = 'late' AND late AND top1_a <> top1_b
), shares AS (
    SELECT lens, prompt, class, count(*) FILTER (class_b = class) AS supported, count(*) FILTER (class_a = class) AS suppressed,
        supported - suppressed AS net, count(*) AS n
    FROM changed, (SELECT DISTINCT class FROM classes)
    GROUP BY lens, prompt, class
), gains AS (
    SELECT "window", lens, prompt, step, class, avg(gain) AS gain FROM cells WHERE late GROUP BY ALL
), firsts AS (
    SELECT side, lens, prompt, step, any_value(layers) AS layers,
        min(layer) FILTER (CASE side WHEN 'a' THEN rank_a ELSE rank_b END = 1) AS first
    FROM cells, (VALUES ('a'), ('b')) AS sides (side)
    WHERE "window" = 'late'
    GROUP BY side, lens, prompt, step
), phases AS (
    SELECT phase, side, lens, prompt, sum((phase = CASE WHEN first IS NULL THEN 'never' WHEN first < 0.4 * layers THEN 'early'
        WHEN first < floor(0.8 * layers) THEN 'mid' ELSE 'late' END)::INTEGER) AS total, count(*) AS n
    FROM firsts, (VALUES ('early'), ('mid'), ('late'), ('never')) AS names (phase)
    GROUP BY phase, side, lens, prompt
), moved AS (
    SELECT lens, prompt, sum(entered_format) AS entered_format, sum(entered_content) AS entered_content,
        sum(entered_function_other) AS entered_function_other, sum(left_format) AS left_format, sum(left_content) AS left_content,
        sum(left_function_other) AS left_function_other, sum(jaccard) AS jaccard, count(*) AS n
    FROM candidates WHERE condition = 'B_late' GROUP BY lens, prompt
)
SELECT 'rank_gain_' || lens AS measure, layer, class, prompt, sum(gain) AS total, count(*) AS n
FROM cells WHERE "window" = 'late' AND class <> 'end' GROUP BY lens, layer, class, prompt
UNION ALL
SELECT 'changed_' || lens, NULL, NULL, prompt, count(*) FILTER (top1_a <> top1_b), count(*)
FROM cells WHERE "window" = 'late' AND late GROUP BY lens, prompt
UNION ALL
SELECT measure || '_' || class || '_' || lens, NULL, NULL, prompt, total, n
FROM (UNPIVOT shares ON supported, suppressed, net INTO NAME measure VALUE total)
UNION ALL
SELECT 'rank_gain_' || class || '_' || "window" || '_' || lens, NULL, NULL, prompt, sum(gain), count(*)
FROM gains GROUP BY "window", class, lens, prompt
UNION ALL
SELECT 'improved_' || class || '_' || "window" || '_' || lens, NULL, NULL, prompt, count(*) FILTER (gain > 0), count(*)
FROM gains GROUP BY "window", class, lens, prompt
UNION ALL
SELECT 'first_top1_' || phase || '_' || side || '_' || lens, NULL, NULL, prompt, total, n FROM phases
UNION ALL
SELECT 'dfirst_top1_' || phase || '_' || lens, NULL, NULL, prompt, sum(CASE side WHEN 'b' THEN total ELSE -total END), any_value(n)
FROM phases GROUP BY phase, lens, prompt
UNION ALL
SELECT measure || '_' || lens, NULL, NULL, prompt, total, n
FROM (
    UNPIVOT (SELECT COLUMNS(* EXCLUDE (lens, prompt, n))::DOUBLE, lens, prompt, n FROM moved)
    ON COLUMNS(* EXCLUDE (lens, prompt, n)) INTO NAME measure VALUE total
)
