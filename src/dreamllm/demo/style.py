"""The look of the demo page, in light and dark, on wide screens and phones."""

CSS = """
.nicegui-content { padding: 0; align-items: center }
.page { width: 100%; max-width: 60rem; padding: 1rem; gap: 0.5rem }
.head { align-items: baseline; gap: 0.75rem; width: 100% }
.title { font-size: 1.5rem; font-weight: 500 }
.quiet { color: #6b6b6b; font-size: 0.85rem; overflow-wrap: anywhere }
.body--dark .quiet { color: #a6a6a6 }
.panels { width: 100%; background: transparent }
.q-tab-panel { padding: 0.75rem 0; display: flex; flex-direction: column; gap: 0.75rem }
.wide { width: 100% }
.grow { flex: 1 1 10rem }
.numbers, .actions, .attached, .examples { width: 100%; gap: 0.5rem; align-items: center }
.examples { gap: 0.25rem }
.number { flex: 1 1 6rem; max-width: 8rem }
.hidden { display: none }
.picture { display: block; width: 100%; height: auto; border-radius: 4px }
.pictures { width: 100%; gap: 1rem; align-items: flex-start }
.figure { width: 12rem; gap: 0.25rem }
.caption { width: 100%; justify-content: space-between; align-items: center }
.thumbnail .picture { width: 3.5rem }
.offered { opacity: 0.6 }
body.body--dark { --q-primary: #9274e3 !important }
.tiles { gap: 0.25rem }
.tile .picture { width: 5.5rem }
.tile .q-btn__content { flex-direction: column }
.talk, .story { width: 100%; gap: 0.5rem }
.said { max-width: 85%; padding: 0.5rem 0.75rem; border-radius: 12px; background: #eeebf4; gap: 0.5rem }
.said.user { align-self: flex-end; background: #6750a4; color: #fff }
.body--dark .said { background: #2b2930 }
.body--dark .said.user { background: #4f378b }
.said .picture, .story .picture { width: 12rem; max-width: 100% }
.given { color: #6b6b6b; gap: 0.5rem }
.body--dark .given { color: #a6a6a6 }
.listing { white-space: pre-line; font-size: 0.85rem }
.words { width: 100% }
@media (max-width: 600px) {
  .figure { width: calc(50% - 0.5rem) }
  .tile .picture { width: 4.25rem }
}
"""
