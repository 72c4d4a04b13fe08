// The maps: the point under the pointer, or that the arrow keys came to, shows its image.
for (const map of document.querySelectorAll(".map")) {
  const svg = map.querySelector("svg"), tip = map.querySelector(".tip"), tile = map.querySelector(".tile");
  const points = [...svg.querySelectorAll(".point")];
  const at = points.map(p => [p.x.baseVal.value, p.y.baseVal.value]);
  const columns = Number(tile.dataset.columns), side = parseFloat(tile.style.width);
  let here = -1;

  function show(n) {
    points[here]?.classList.remove("here");
    here = n;
    tip.hidden = n < 0;
    if (n < 0) return;
    points[n].classList.add("here");
    tile.style.backgroundPosition = `${-side * (n % columns)}px ${-side * Math.floor(n / columns)}px`;
    map.querySelector(".words").textContent = points[n].dataset.words;
    const scale = svg.clientWidth / svg.viewBox.baseVal.width, [x, y] = at[n].map(v => v * scale);
    tip.style.left = `${Math.max(0, Math.min(x + 12, svg.clientWidth - tip.offsetWidth))}px`;
    tip.style.top = `${y + 12 + tip.offsetHeight > svg.clientHeight ? Math.max(0, y - 12 - tip.offsetHeight) : y + 12}px`;
  }
  // The nearest point by a distance that may rule one out with Infinity; -1 if it does all.
  function nearest(distance) {
    const d = at.map(distance), least = Math.min(...d);
    return least < Infinity ? d.indexOf(least) : -1;
  }
  function pointed(event) {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    show(nearest(([a, b]) => Math.hypot(a - x, b - y) < 30 ? Math.hypot(a - x, b - y) : Infinity));
  }
  const ways = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
  map.addEventListener("keydown", event => {
    if (event.key === "Escape") return show(-1);
    const way = ways[event.key];
    if (!way) return;
    event.preventDefault();
    if (here < 0) return show(0);
    const [x, y] = at[here];
    // Within 45 degrees of the arrow: as far along it as aside, or farther.
    const next = nearest(([a, b]) => {
      const along = (a - x) * way[0] + (b - y) * way[1], aside = Math.abs((a - x) * way[1]) + Math.abs((b - y) * way[0]);
      return along > 0 && along >= aside ? Math.hypot(a - x, b - y) : Infinity;
    });
    if (next >= 0) show(next);
  });
  map.addEventListener("pointermove", pointed);
  map.addEventListener("pointerdown", pointed);
  map.addEventListener("pointerleave", () => show(-1));
  map.addEventListener("blur", () => show(-1));
}
