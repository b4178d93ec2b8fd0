"""The page's style sheet; everything else is gradio's own."""

CSS = """
.gradio-container {
  max-width: 1240px !important;
  margin: 0 auto !important;
  padding: 0 16px 32px !important;
}
.gradio-container .main {padding: 8px 0 !important}
.gradio-container .html-container {padding: 0 !important}
footer {display: none !important}
body:not(.dark) .gradio-container {
  --body-text-color-subdued: #566476;
  --block-info-text-color: #566476;
}

.isf-head h1 {font-size: 1.6rem; font-weight: 650; margin: 20px 0 2px}
.isf-head p {margin: 0; color: var(--body-text-color-subdued); overflow-wrap: anywhere}
.isf-head .isf-notice, .isf-error {
  padding: 8px 12px;
  border-radius: 4px;
  font-size: .95rem;
  overflow-wrap: anywhere;
}
.isf-head .isf-notice {
  border-left: 4px solid #b7791f;
  background: #fdf6e7;
  color: #5f3f0c;
  margin-top: 12px;
}
.isf-error {border-left: 4px solid #b3261e; background: #fdecea; color: #7a1a14}
.isf-status {color: var(--body-text-color-subdued); overflow-wrap: anywhere}

.isf-figures {
  display: grid;
  gap: 14px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 220px), 1fr));
}
.isf-figures figure {margin: 0; min-width: 0}
.isf-figures figure > img {
  display: block;
  width: 100%;
  height: auto;
  margin: 0;
  border-radius: 6px;
  background: #111;
}
.isf-outline figure > img {max-height: 70vh; object-fit: contain}
.isf-figures figcaption {font-size: .92rem; margin-top: 6px; line-height: 1.35}
.isf-scale {
  display: flex;
  align-items: center;
  gap: 8px;
  font-size: .8rem;
  margin-top: 4px;
  color: var(--body-text-color-subdued);
}
.isf-scale img {height: 8px; flex: 1; min-width: 0; margin: 0; border-radius: 2px}

.isf-table {width: 100%; border-collapse: collapse; font-size: .95rem; margin: 0 !important}
.isf-table, .isf-table tr {border: 0 !important}
.isf-table th, .isf-table td {
  text-align: left !important;
  padding: 6px 4px !important;
  border: 0 !important;
  border-bottom: 1px solid var(--border-color-primary) !important;
  vertical-align: top;
  font-weight: 400;
}
.isf-table th {color: var(--body-text-color-subdued); padding-right: 12px; white-space: nowrap}
.isf-table td {font-variant-numeric: tabular-nums}
.isf-small {font-size: .85rem; color: var(--body-text-color-subdued); margin: 8px 0 0}

.isf-downloads {display: flex; flex-wrap: wrap; gap: 8px; margin-top: 14px}
.isf-downloads a {
  flex: 1 1 120px;
  text-align: center;
  padding: 9px 12px;
  border-radius: 6px;
  border: 1px solid var(--primary-600);
  color: var(--primary-600) !important;
  text-decoration: none !important;
  font-weight: 550;
}
.dark .isf-downloads a {border-color: var(--primary-300); color: var(--primary-300) !important}
.isf-downloads a:hover, .isf-downloads a:focus-visible {
  background: var(--primary-600);
  color: #fff !important;
}

/* On a phone: the picture before what is said of it. */
@media (max-width: 700px) {
  #isf-main > .column {display: contents}
  #isf-main > .column > * {flex: 1 1 100%; min-width: 0 !important; order: 7}
  #isf-picture {order: 1 !important}
  #isf-file, #isf-example {order: 2 !important}
  #isf-status {order: 3 !important}
  #isf-drawn {order: 4 !important}
  #isf-main .form {order: 5 !important}
  #isf-numbers {order: 6 !important}
}
"""
