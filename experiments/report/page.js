// Values on hover, and lines that can be switched off. Without this script the pictures are whole.
(() => {
  "use strict";
  const SHOWN = 14; // lines of a tip
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);
  const off = new Map(); // name of a set of lines -> numbers of those that are switched off
  const of = (set) => off.get(set) || off.set(set, new Set()).get(set);

  const apply = (set) => {
    document.querySelectorAll(`.panel[data-set="${set}"] svg [class]`).forEach((part) => {
      const number = /^s(\d+)$/.exec(part.getAttribute("class"));
      if (number) part.style.display = of(set).has(+number[1]) ? "none" : "";
    });
    document.querySelectorAll(`.switches[data-set="${set}"] button`).forEach((button) => {
      button.setAttribute("aria-pressed", String(!of(set).has(+button.dataset.line)));
    });
  };

  document.querySelectorAll(".switches button").forEach((button) => {
    button.addEventListener("click", (event) => {
      const set = button.parentElement.dataset.set, line = +button.dataset.line, hidden = of(set);
      const all = [...button.parentElement.children].filter((b) => b.dataset.line).map((b) => +b.dataset.line);
      if (event.detail > 1) { // the second of a double click: this line alone, or all again
        const alone = all.every((other) => (other === line) !== hidden.has(other));
        hidden.clear();
        if (!alone) all.filter((other) => other !== line).forEach((other) => hidden.add(other));
      } else if (!hidden.delete(line)) hidden.add(line);
      apply(set);
    });
  });

  const text = (value) => (value === null || value === undefined ? "–" : String(value));
  const say = (head, rows, event) => {
    tip.replaceChildren();
    const title = document.createElement("b");
    title.textContent = head;
    tip.append(title);
    rows.slice(0, SHOWN).forEach(([colour, words]) => {
      const row = document.createElement("div");
      if (colour) {
        const mark = document.createElement("i");
        mark.style.setProperty("--c", colour);
        row.append(mark);
      }
      row.append(words);
      tip.append(row);
    });
    if (rows.length > SHOWN) tip.append(`… ${rows.length - SHOWN} more`);
    tip.hidden = false;
    const left = event.pageX + 14 + tip.offsetWidth > scrollX + innerWidth - 4 ? event.pageX - tip.offsetWidth - 14 : event.pageX + 14;
    tip.style.left = `${Math.max(scrollX + 4, left)}px`;
    tip.style.top = `${event.pageY + 14}px`;
  };

  document.querySelectorAll(".panel").forEach((panel) => {
    const source = panel.querySelector("script"), svg = panel.querySelector("svg");
    if (!source || !svg) return;
    const data = JSON.parse(source.textContent), set = panel.dataset.set || "";
    const colours = JSON.parse(panel.dataset.colours || "{}");
    const view = svg.viewBox.baseVal;

    const look = (event) => {
      const frame = svg.getBoundingClientRect();
      const x = ((event.clientX - frame.left) / frame.width) * view.width;
      const y = ((event.clientY - frame.top) / frame.height) * view.height;
      const [left, top, width, height] = data.box;
      if (x < left - 6 || x > left + width + 6 || y < top - 6 || y > top + height + 6) return void (tip.hidden = true);
      if (data.cells) {
        const row = Math.min(data.rows.length - 1, Math.max(0, Math.floor(((y - top) / height) * data.rows.length)));
        const column = Math.min(data.columns.length - 1, Math.max(0, Math.floor(((x - left) / width) * data.columns.length)));
        return say(`${data.x} ${data.columns[column]}, ${data.y} ${data.rows[row]}`, [["", `${data.label}: ${text(data.cells[row][column])}`]], event);
      }
      const found = [];
      let nearest = Infinity, head = "";
      data.lines.forEach((line) => {
        if (of(set).has(line.i)) return;
        let best = -1, distance = Infinity;
        line.px.forEach((px, i) => {
          const away = Math.abs(px - x) + (data.kind === "bar" ? 0 : 0.001 * Math.abs(line.py[i] - y));
          if (away < distance) [best, distance] = [i, away];
        });
        if (best < 0 || distance > Math.max(12, width / 10)) return;
        const spread = line.e && line.e[best] ? ` ± ${line.e[best]}` : "";
        const at = data.names.length ? data.names[line.x[best]] : `${data.x} ${text(line.x[best])}`;
        if (distance < nearest) [nearest, head] = [distance, at];
        const place = data.names.length || at === head ? "" : ` at ${text(line.x[best])}`;
        found.push([Math.abs((line.py[best] ?? 0) - y), colours[line.i], `${line.n ? line.n + ": " : ""}${text(line.y[best])}${spread}${place}`]);
      });
      if (!found.length) return void (tip.hidden = true);
      found.sort((a, b) => a[0] - b[0]);
      say(head, found.map((entry) => entry.slice(1)), event);
    };
    svg.addEventListener("pointermove", look);
    svg.addEventListener("pointerdown", look);
    svg.addEventListener("pointerleave", () => (tip.hidden = true));
  });
})();
