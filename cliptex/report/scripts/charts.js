// Charts of other pairs of models. They are in the page, compressed; this unpacks the one that the reader chooses.
"use strict";
for (const figure of document.querySelectorAll("figure.chart[data-dark]")) {
  const image = figure.querySelector("img");
  const sources = [...figure.querySelectorAll("source")];
  const caption = figure.querySelector("figcaption span");
  const dark = JSON.parse(figure.dataset.dark);
  const first = { caption: caption.textContent, alt: image.alt, light: image.src, dark: sources.at(-1).srcset };
  const templates = [...figure.querySelectorAll("template")];

  const addressOf = (svg) => `data:image/svg+xml,${encodeURIComponent(svg)}`;
  const unpack = async (template) => {
    const bytes = Uint8Array.from(atob(template.content.textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const svg = await new Response(stream).text();
    const onDark = svg.replace(/#[0-9a-f]{6}/g, (colour) => dark[colour] ?? colour);
    return { caption: template.dataset.caption, alt: template.dataset.alt, light: addressOf(svg), dark: addressOf(onDark) };
  };
  let current = "";
  // a pair without a chart has that of the default pair, which its caption names
  figure.showPair = async (subject, reference) => {
    const pair = `${subject} ${reference}`;
    if (pair === current) return;
    current = pair;
    const template = templates.find((one) => `${one.dataset.subject} ${one.dataset.reference}` === pair);
    const chosen = template ? await unpack(template) : first;
    if (pair !== current) return; // another was chosen meanwhile
    sources.forEach((source) => { source.srcset = source.media === "print" ? chosen.light : chosen.dark; });
    image.src = chosen.light;
    image.alt = chosen.alt;
    caption.textContent = chosen.caption;
    figure.querySelector(".drawing").setAttribute("aria-label", chosen.caption);
  };
  figure.noteThatAllAreShown = (needed) => { figure.querySelector("figcaption span + span").hidden = !needed; };
}
