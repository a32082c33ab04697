// Whole numbers below n, the same in every run.
export function random(seed) {
  let state = seed;
  return (n) => {
    state = (state * 1664525 + 1013904223) % 2 ** 32;
    return Math.floor((state / 2 ** 32) * n);
  };
}
