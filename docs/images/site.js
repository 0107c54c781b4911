// Tables and code that scroll must do so by keyboard, too. The theme makes the former, and a landmark without a name for
// the buttons of each code block, after the page is loaded, and takes the tabindex of code away when the window's width changes.
function complete() {
  const scrolling = document.querySelectorAll(":is(.md-typeset__scrollwrap, pre > code):not([tabindex])");
  for (const element of scrolling) element.tabIndex = 0;
  for (const buttons of document.querySelectorAll(".md-code__nav:not([role])")) buttons.setAttribute("role", "none");
}
new MutationObserver(complete).observe(document.body, { childList: true, subtree: true, attributeFilter: ["tabindex"] });
complete();
