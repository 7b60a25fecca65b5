// Where a channel comes from, and what becomes of it: the index maps of all rewrites, walked backwards or forwards.

/** The splits that led to a channel, the latest first, and the seed's channel that it goes back to. */
function ancestry(position, space, index) {
  const splits = [];
  let at = index;
  for (let phase = Math.min(position, lastPosition) - 1; phase >= 0; phase -= 1) {
    for (const rewrite of [...run.positions[phase].rewrites].reverse()) {
      const map = rewrite.maps[space];
      if (!map) continue;
      if (map.signs[at]) splits.push({ of: map.sources[at], phase: phase + 1, sign: map.signs[at] });
      at = map.sources[at];
    }
  }
  return { splits, seed: at };
}

/** The same in words: `split of 9 in phase 3, that of 4 in phase 1`. */
function ancestryText(position, space, index) {
  const { splits, seed } = ancestry(position, space, index);
  if (!splits.length) return index === seed ? "channel of the seed" : `channel ${seed} of the seed`;
  const steps = splits.map(({ of, phase }, step) => `${step ? "that a" : "a"} split of ${of} in phase ${phase}`);
  steps[0] = steps[0].slice(2);
  return steps.length > 1 || splits[0].of !== seed ? `${steps.join(", ")}; ${seed} in the seed` : steps[0];
}

/** The numbers that a channel has after the position's rewrites; none where it was pruned. */
function descendants(position, space, index) {
  let held = [index];
  for (const rewrite of run.positions[position].rewrites ?? []) {
    const map = rewrite.maps[space];
    if (map) held = map.sources.flatMap((source, after) => (held.includes(source) ? [after] : []));
  }
  return held;
}
