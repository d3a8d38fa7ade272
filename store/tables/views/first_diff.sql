-- Where the two greedy continuations of a pair first differ, one row a prompt (METHODS 14, first_diff).
-- Of streams of one recipe, prompt set and length. Both variants read the same answer up to `step` and there predict different tokens: at `token`,
-- `position` of IT's stream and `token_pt`, `position_pt` of PT's. Where one has ended before they differ there is no event.
-- What follows has no shared prefix any more: later divergences are left out.
-- column stream_pt: stream that the PT read
-- column token_pt: index of the token in the PT's stream
-- column position_pt: place of the token in the PT's sequence
-- column it_token: id of the token that the IT goes on with
-- column pt_token: id of the token that the PT goes on with
WITH both_streams AS (
    SELECT DISTINCT it.pair, it.stream, pt.stream AS stream_pt
    FROM streams AS it JOIN streams AS pt USING (pair, recipe, prompt_set, max_new_tokens)
    WHERE it.variant = 'it' AND pt.variant = 'pt'
), targets AS (
    SELECT pair, variant, stream, prompt, prompt_id, category, token, position, step,
        lead(token_id) OVER (PARTITION BY pair, variant, stream, prompt ORDER BY position) AS target
    FROM tokens
    QUALIFY step >= 0
)
SELECT pair, 'both' AS variant, stream, stream_pt, prompt, prompt_id, it.category, step, it.token, it.position,
    pt.token AS token_pt, pt.position AS position_pt, it.target AS it_token, pt.target AS pt_token
FROM both_streams
    JOIN (FROM targets WHERE variant = 'it') AS it USING (pair, stream)
    JOIN (SELECT stream AS stream_pt, * EXCLUDE (stream) FROM targets WHERE variant = 'pt') AS pt
    USING (pair, stream_pt, prompt, prompt_id, step)
WHERE it.target <> pt.target
QUALIFY step = min(step) OVER (PARTITION BY pair, stream, stream_pt, prompt)
