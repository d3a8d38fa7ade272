-- id: exp10_P3
-- title: Parts of IT's state patched into the PT (P3)
-- needs: patching(raw), patching(tuned)?
-- stream: teacher
-- bootstrap: prompt
-- contrast: patch conv - random
-- plot: line x=layer hue=patch y="with the patch − without" numbers=nats dcommit_*=layers
--   hide=excess_*,d*_conv_tuned,d*_full_tuned,d*_random_tuned,d*_mean_tuned,d*_rest_tuned
-- says: IT's state put into the PT at one token of the answer, only along the direction of later convergence, changes the PT's
--   KL to its own final distribution by {dkl_conv_raw} nats in the layers from the patch on; as long a step in a random direction
--   by {dkl_random_raw}: {excess_dkl_raw?more|less|no clear difference} ({excess_dkl_raw}). The whole difference gives
--   {dkl_full_raw}, without that direction {dkl_rest_raw}, along the mean direction alone {dkl_mean_raw}. The layer where KL
--   first falls below 0.1 moves by {dcommit_conv_raw} (random {dcommit_random_raw}, whole difference {dcommit_full_raw}).[ With
--   the tuned lens KL changes by {dkl_conv_tuned}, random {dkl_random_tuned}, whole difference {dkl_full_tuned}.]
-- about: The PT reads its raw prompt and IT's answer, up to one token of it; there, at the output of one block, a part of x
--   = h_it - h_pt is added to its residual, and the blocks after it run again. `patch`: conv, the component along d_conv
--   (exp10); full, x, so that the PT goes on from IT's state at this token; random, as long as conv, along a fixed random
--   unit vector of the layer (seed 42); mean, the component along the mean direction of 0A; rest, x without conv. Known
--   pitfall: in-sample fit. Random has the length of d_conv's projection, so it is no control for `mean`; and the layers
--   are picked by an R2 that is in-sample, as the PT/IT study does. The mean direction comes from MLP outputs and is used
--   in the residual here, like there. Prompts, tokens, layers: the last 120 prompts with an answer, their first 5 answer
--   tokens as inputs, the 10 layers of largest R2 but the last (all, where there are fewer). d_conv is fitted to all
--   prompts, those patched too; the study's were others. `dkl`: with the patch less without, KL(final || layer), each
--   against its own final distribution; by layer read (`dkl`, all patches at or below it; the last is zero) or patched
--   (`dkl_by_patch`, mean over the layers from the patched one to the last but one; the study's mean leaves the patched
--   layer out and takes in the last). `dcommit`: of the layer at which KL is 0.1 for the first time, interpolated (METHODS
--   3.3), layers below the patch counted too: their distance to the new final distribution. Lens, d_conv and R2 are raw, or
--   tuned (`_tuned`; the study's choice except for Gemma). One random draw a layer: its noise is not in the intervals. Of a
--   bfloat16 model each value differs by the replay's rounding too, to either side.
-- pitfalls: in-sample fit
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
UNION ALL
SELECT measure || '_' || patch || '_' || lens, NULL, NULL, prompt, sum(value), count(*)
FROM numbers
GROUP BY measure, patch, lens, prompt
UNION ALL
SELECT 'excess_' || measure || '_' || lens, NULL, NULL, prompt, sum(CASE patch WHEN 'conv' THEN value ELSE -value END), count(*) / 2
FROM numbers
WHERE patch IN ('conv', 'random')
GROUP BY measure, lens, prompt
HAVING count(DISTINCT patch) = 2
