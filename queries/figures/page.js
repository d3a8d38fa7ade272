"use strict";
// The search box: rows whose number, title, sentence or names hold all words stay; the contents follow what is read.
(() => {
  const box = document.getElementById("search"), none = document.getElementById("none");
  const rows = [...document.querySelectorAll("section[data-row]")].map(section => {
    const link = document.querySelector(`.contents a[href="#${section.id}"]`);
    return {section, item: link.parentElement, link, text: section.textContent.toLowerCase()};
  });
  const search = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.section.hidden = row.item.hidden = !words.every(word => row.text.includes(word));
    for (const group of document.querySelectorAll(".contents div")) {
      const items = [...group.querySelectorAll("li")];
      group.hidden = items.length > 0 && items.every(item => item.hidden);
    }
    none.hidden = rows.some(row => !row.section.hidden);
  };
  box.addEventListener("input", search);
  document.addEventListener("keydown", event => {
    if (event.key !== "/" || event.target === box) return;
    event.preventDefault();
    box.focus();
  });
  const seen = new IntersectionObserver(entries => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const row of rows) {
        if (row.section === entry.target) row.link.setAttribute("aria-current", "true");
        else row.link.removeAttribute("aria-current");
      }
    }
  }, {rootMargin: "0px 0px -70% 0px"});
  for (const row of rows) seen.observe(row.section);
  search();
})();
