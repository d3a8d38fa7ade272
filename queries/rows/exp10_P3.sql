-- id: exp10_P3
-- title: Parts of IT's state patched into the PT
-- needs: patching(raw), patching(tuned)?
-- stream: teacher
-- bootstrap: prompt
-- contrast: patch conv - random
-- plot: line x=layer hue=patch panels=dkl_raw,dkl_map_raw/conv,dkl_map_raw/full
--   forest=dkl_conv_raw,dkl_random_raw,dkl_mean_raw,dkl_rest_raw,dkl_full_raw
--   heat=dkl_map_* down=token
-- says: IT's state put into the PT at one token of the answer, only along the direction of later convergence, changes the PT's
--   KL to its own final distribution by {dkl_conv_raw} nats in the layers from the patch on; as long a step in a random direction
--   by {dkl_random_raw}: {excess_dkl_raw?more|less|no clear difference} ({excess_dkl_raw}). The whole difference gives
--   {dkl_full_raw}, without that direction {dkl_rest_raw}, along the mean direction alone {dkl_mean_raw}. The layer where KL
--   first falls below 0.1 moves by {dcommit_conv_raw} (random {dcommit_random_raw}, whole difference {dcommit_full_raw}).[ With
--   the tuned lens KL changes by {dkl_conv_tuned}, random {dkl_random_tuned}, whole difference {dkl_full_tuned}.]
-- about: The PT reads its raw prompt and IT's continuation up to one token. There, at the output of one block, a part
--   of x = h_it − h_pt is added to its residual, and the blocks after it run again. Lens, d_conv and R² are raw, or
--   tuned (`_tuned`; the study's choice except for Gemma).
--   - `patch`: conv, the component of x along d_conv (exp10); full, x itself, so that the PT goes on from IT's state
--     at this token; random, as long as conv, along a fixed random unit vector of the layer (seed 42); mean, the
--     component along the mean direction of 0A; rest, x without conv. The mean direction comes from MLP outputs and
--     is used in the residual, as in the study.
--   - `dkl`: KL(final || layer) with the patch less without, each against its own final distribution, by the layer
--     that is read (all patches at or below it; the last is zero). `dkl_by_patch`: by the layer that is patched, mean
--     from that layer to the last but one. The study's mean leaves the patched layer out and takes in the last.
--   - `dcommit`: change of the layer at which KL is 0.1 for the first time, interpolated (METHODS 3.3). Layers below
--     the patch count too, by their distance to the new final distribution.
--   - One random draw a layer: its noise is not in the intervals. Of a bfloat16 model each value differs by the
--     replay's rounding too, to either side.
-- measures:
--   - dkl_<lens> | change of KL(final ‖ layer), <lens> | nats | with the patch less without, at the layer
--     that is read, over all patches at or below it
--   - dkl_by_patch_<lens> | change of KL by the patched layer, <lens> | nats | mean over layers from the
--     patch to the last but one
--   - dkl_map_<lens> | change of KL by patched layer and token, <lens> | nats | mean over layers from the
--     patch to the last but one, by the patched layer and the token of the answer
--   - dcommit_by_patch_<lens> | shift of the first crossing by the patched layer, <lens> | layers | change of
--     the layer at which KL is 0.1 for the first time
--   - dkl_<patch>_<lens> | <patch>, <lens> | nats | change of KL with this patch, mean over patched layers
--     and the layers above them
--   - dcommit_<patch>_<lens> | shift of the first crossing, <patch>, <lens> | layers | change of the layer at
--     which KL is 0.1 for the first time, with this patch
--   - excess_dkl_<lens> | along d_conv less random, <lens> | nats | change of KL along d_conv less that of a
--     random step as long
--   - excess_dcommit_<lens> | shift of the first crossing, along d_conv less random, <lens> | layers | change
--     along d_conv less that of a random step as long
-- positions: The last 120 prompts with a continuation, their first 5 continuation tokens as inputs, and the 10 layers
--   of largest R² but the last (all, where there are fewer).
-- pitfalls:
--   - in-sample fit: Layers are picked by an in-sample R², as in the study, and d_conv is fitted to all prompts,
--     those patched too (the study's were others). `random` has the length of d_conv's component, so it is no control
--     for `mean`.
-- published: none
-- source: METHODS 7 (P3), 3.3
WITH cells AS (
    SELECT lens, prompt, position, patch_layer, patch, layer, kl_final_layer AS kl, kl_host, max(layer) OVER () AS last
    FROM patching
), curves AS (
    SELECT lens, prompt, position, patch_layer, patch, avg(kl - kl_host) FILTER (layer >= patch_layer AND layer < last) AS dkl,
        [list(kl ORDER BY layer), list(kl_host ORDER BY layer)] AS curves
    FROM cells
    GROUP BY lens, prompt, position, patch_layer, patch
), commits AS (
    SELECT * EXCLUDE curves,
        [coalesce([case when l = 0 then 0 else l - 1 + (curve[l] - 0.1) / (curve[l] - curve[l + 1]) end
            for l in range(len(curve)) if curve[l + 1] < 0.1][1], len(curve) - 1) for curve in curves] AS commits
    FROM curves
), numbers AS (
    UNPIVOT (SELECT * EXCLUDE commits, commits[1] - commits[2] AS dcommit FROM commits) ON dkl, dcommit
    INTO NAME measure VALUE value
)
SELECT 'dkl_' || lens AS measure, layer, patch, prompt, sum(kl - kl_host) AS total, count(*) AS n
FROM cells
WHERE layer >= patch_layer
GROUP BY lens, layer, patch, prompt
UNION ALL
SELECT measure || '_by_patch_' || lens, patch_layer, patch, prompt, sum(value), count(*)
FROM numbers
GROUP BY measure, lens, patch_layer, patch, prompt
UNION ALL BY NAME
SELECT 'dkl_map_' || lens AS measure, patch_layer AS layer, patch, token, prompt, sum(dkl) AS total, count(*) AS n
FROM (SELECT *, dense_rank() OVER (PARTITION BY lens, prompt ORDER BY position) AS token FROM curves)
WHERE patch IN ('conv', 'full')
GROUP BY lens, layer, patch, token, prompt
UNION ALL BY NAME
SELECT measure || '_' || patch || '_' || lens AS measure, prompt, sum(value) AS total, count(*) AS n
FROM numbers
GROUP BY measure, patch, lens, prompt
UNION ALL BY NAME
SELECT 'excess_' || measure || '_' || lens AS measure, prompt, sum(CASE patch WHEN 'conv' THEN value ELSE -value END) AS total,
    count(*) / 2 AS n
FROM numbers
WHERE patch IN ('conv', 'random')
GROUP BY measure, lens, prompt
HAVING count(DISTINCT patch) = 2
