"""The page on which raters rate documents: one HTML file that loads nothing else.

`rating_form.py` fills in DIGEST and SAMPLES; everything else runs in the browser. Ratings are kept in the
browser's storage, so that a closed page can be opened again and continued.
"""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Rating documents</title>
<style>
:root { color-scheme: light }
body { font: 18px/1.5 Georgia, serif; margin: 0; color: #222; background: #fff }
header, main, footer { max-width: 46rem; margin: 0 auto; padding: 0.75rem 1rem }
header { border-bottom: 1px solid #ccc; font: 15px/1.5 system-ui, sans-serif }
footer { position: sticky; bottom: 0; background: #fff; border-top: 1px solid #ccc; font-family: system-ui, sans-serif }
article { min-height: 45vh }
article img { display: block; width: 192px; margin: 0.25em 0 1em; image-rendering: pixelated }
article p { margin: 0 }
button { font: inherit; padding: 0.4em 0.9em; margin: 0.15em 0.3em 0.15em 0; border: 2px solid #555; border-radius: 6px;
 background: #fff; color: #222; cursor: pointer }
button:hover { background: #eee }
button:focus-visible, input:focus-visible { outline: 3px solid #0072b2; outline-offset: 2px }
button[aria-pressed="true"] { background: #0072b2; border-color: #0072b2; color: #fff }
button:disabled { color: #999; border-color: #ccc; cursor: default }
kbd { font: 13px/1 ui-monospace, monospace; border: 1px solid currentColor; border-radius: 3px; padding: 0 0.3em }
input { font: inherit; padding: 0.3em }
progress { width: 100%; height: 0.6em }
#message { color: #a33000; min-height: 1.5em }
</style>
<header>
<h1 style="font-size:1.2em; margin:0">Does this document hold together?</h1>
<p style="margin:0.4em 0">Some of these documents are real, some were made by a model; nothing says which. Call a
document <b>supported</b> when every picture shows what the text beside it says, and the text makes sense from sentence
to sentence; otherwise <b>not supported</b>. Judge what you see, not how it may have been made.</p>
<label>Your code name (no real name): <input id="rater" size="16" maxlength="40" autocomplete="off"></label>
</header>
<main>
<p id="place" aria-live="polite" style="font-family: system-ui, sans-serif; margin: 0"></p>
<progress id="done" value="0" max="1" aria-label="judged documents"></progress>
<article id="document" tabindex="-1"></article>
</main>
<footer>
<div role="group" aria-label="judgement">
<button id="yes" type="button" aria-pressed="false">Supported <kbd>y</kbd></button>
<button id="no" type="button" aria-pressed="false">Not supported <kbd>n</kbd></button>
<button id="back" type="button">Back <kbd>&larr;</kbd></button>
<button id="next" type="button">Next <kbd>&rarr;</kbd></button>
<button id="open" type="button">First unjudged <kbd>u</kbd></button>
<button id="save" type="button">Save file <kbd>s</kbd></button>
</div>
<div id="message" role="status"></div>
</footer>
<script id="samples" type="application/json">@SAMPLES@</script>
<script>
"use strict";
const page = "@DIGEST@";
const samples = JSON.parse(document.getElementById("samples").textContent);
const element = id => document.getElementById(id);
const storage = (() => { try { return window.localStorage; } catch (_) { return null; } })();
const key = "dreamllm-human-" + page;
let kept = { rater: "", at: 0, judgements: {} };
try { kept = Object.assign(kept, JSON.parse(storage.getItem(key) || "{}")); } catch (_) { /* begins anew */ }

function keep() {
  try { storage.setItem(key, JSON.stringify(kept)); } catch (_) {
    element("message").textContent = "This browser keeps nothing: save the file before you close the page.";
  }
}

function show(focus) {
  const sample = samples[kept.at], box = element("document");
  box.replaceChildren();
  let pictures = 0;
  for (const part of sample.parts) {
    if ("text" in part) {
      const words = document.createElement("p");
      words.textContent = part.text;
      box.append(words);
    } else {
      const picture = document.createElement("img");
      picture.src = "data:image/png;base64," + part.picture;
      picture.alt = "picture " + (++pictures) + " of this document";
      box.append(picture);
    }
  }
  const judged = Object.keys(kept.judgements).length, judgement = kept.judgements[sample.id];
  element("place").textContent = "Document " + (kept.at + 1) + " of " + samples.length + ", " + judged + " judged";
  element("done").max = samples.length;
  element("done").value = judged;
  element("yes").setAttribute("aria-pressed", String(judgement === true));
  element("no").setAttribute("aria-pressed", String(judgement === false));
  element("back").disabled = kept.at === 0;
  element("next").disabled = kept.at === samples.length - 1;
  if (focus) { window.scrollTo(0, 0); box.focus({ preventScroll: true }); }
}

function go(to) {
  kept.at = Math.min(Math.max(to, 0), samples.length - 1);
  keep();
  show(true);
}

function unjudged() {
  const open = samples.findIndex(sample => !(sample.id in kept.judgements));
  if (open >= 0) go(open);
  else element("message").textContent = "All documents are judged. Save the file and send it back.";
}

function judge(supported) {
  kept.judgements[samples[kept.at].id] = supported;
  element("message").textContent = "";
  if (kept.at < samples.length - 1) go(kept.at + 1);
  else { keep(); show(false); unjudged(); }
}

function save() {
  const left = samples.filter(sample => !(sample.id in kept.judgements)).length;
  if (!kept.rater.trim()) {
    element("message").textContent = "Write a code name at the top first.";
    element("rater").focus();
    return;
  }
  const judgements = samples.filter(sample => sample.id in kept.judgements)
    .map(sample => ({ sample: sample.id, supported: kept.judgements[sample.id] }));
  const text = JSON.stringify({ page, rater: kept.rater.trim(), judgements }, null, 1) + "\\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "judgements-" + kept.rater.trim().replace(/[^A-Za-z0-9]+/g, "-") + ".json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  element("message").textContent = left
    ? "Saved, but " + left + " documents are not judged yet: the file counts only when it is whole."
    : "Saved. Thank you: send the file back.";
}

const actions = {
  y: () => judge(true), n: () => judge(false), ArrowLeft: () => go(kept.at - 1), ArrowRight: () => go(kept.at + 1),
  u: unjudged, s: save,
};
for (const [id, name] of [["yes", "y"], ["no", "n"], ["back", "ArrowLeft"], ["next", "ArrowRight"], ["open", "u"],
                          ["save", "s"]]) element(id).addEventListener("click", actions[name]);
document.addEventListener("keydown", event => {
  if (event.target === element("rater") || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.key in actions) { event.preventDefault(); actions[event.key](); }
});
element("rater").value = kept.rater;
element("rater").addEventListener("input", () => { kept.rater = element("rater").value; keep(); });
show(false);
</script>
</html>
"""
