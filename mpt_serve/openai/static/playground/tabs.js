// Tabs as ARIA's authoring practices describe them: one tab stop, arrow keys, Home and End.

/** Make a tab list work. onSelect: called with the chosen tab's element. Returns a function that selects a tab. */
export function tabs(list, onSelect = () => {}) {
  const all = [...list.querySelectorAll('[role="tab"]')];

  function select(chosen) {
    for (const tab of all) {
      const selected = tab === chosen;
      tab.setAttribute("aria-selected", String(selected));
      tab.tabIndex = selected ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = !selected;
    }
    onSelect(chosen);
  }

  list.addEventListener("click", (event) => {
    const tab = event.target.closest('[role="tab"]');
    if (tab) select(tab);
  });
  list.addEventListener("keydown", (event) => {
    const at = all.indexOf(document.activeElement);
    const target = {
      ArrowRight: all[(at + 1) % all.length],
      ArrowLeft: all[(at + all.length - 1) % all.length],
      Home: all[0],
      End: all.at(-1),
    }[event.key];
    if (!target || at < 0) return;
    event.preventDefault();
    target.focus();
    select(target);
  });
  return select;
}
