// The last script: all pages are there.
"use strict";
explorer.start().catch(error => {
  document
    .getElementById("main")
    .replaceChildren(explorer.el("p.note", {}, `The explorer can't start: ${error.message}`));
});
