-- The quick rules of commit_layers with a row per token and rule: top1, kl_0.1, entropy_0.1, cos_0.95 ... (explained there).
-- column rule: rule by which the lens commits: top1, kl_T, entropy_T or cos_C
-- column layer (layer): layer at which it commits
-- The others are columns of commit_layers alone: they cost several times as much.
WITH families AS (
    UNPIVOT (
        SELECT pair, variant, model, stream, lens, prompt, prompt_id, category, token, position, step, [top1] AS top1, kl, entropy, cos
        FROM commit_layers
    )
    ON top1, kl, entropy, cos INTO NAME family VALUE found
), ruled AS (
    SELECT *, CASE family WHEN 'top1' THEN ['top1'] WHEN 'cos' THEN ['cos_0.8', 'cos_0.9', 'cos_0.95', 'cos_0.99']
        ELSE [family || '_' || threshold for threshold in ['0.05', '0.1', '0.2', '0.5', '1.0']] END AS names
    FROM families
)
SELECT pair, variant, model, stream, lens, prompt, prompt_id, category, token, position, step,
    unnest(names) AS rule, unnest(found) AS layer
FROM ruled
