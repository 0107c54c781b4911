// The theme makes these elements after the page is loaded: wide tables, which must scroll by keyboard, too, and the
// buttons of code blocks, each in a landmark without a name.
function complete() {
  for (const table of document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])")) table.tabIndex = 0;
  for (const buttons of document.querySelectorAll(".md-code__nav:not([role])")) buttons.setAttribute("role", "none");
}
new MutationObserver(complete).observe(document.body, { childList: true, subtree: true });
complete();
