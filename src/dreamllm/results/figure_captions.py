"""What each figure shows, for its index (`figures.py`) and for `snakemake --report`."""

CAPTIONS = {
    "learning_curves": "Losses of every training stage over its steps: thin as measured, thick smoothed.",
    "drawings": "The real picture and what each model draws from the words above it: the first prompts of each kind of "
    "scene, of combinations that training showed and of one that it held out.",
    "figure3_documents": "Figure 3 of the paper: the first stories with pictures that the model tells. The "
    "first sentence is given, the others and all pictures are the model's, which also places the pictures.",
    "figure4_questions": "Figure 4 of the paper: questions that the comprehension-only model (A) and the joint one "
    "(B) answer differently, the first of each type, then the second. ✓ marks right answers.",
    "figure5_in_context": "Figure 5 of the paper: pictures drawn after pictures and a sentence: edited, "
    "subject-driven and composed. Stable Diffusion gets the sentence alone. Of each kind the first item of things in "
    "colours that training showed, and the first with one that it held out.",
    "figure6_attention": "Figure 6 of the paper: for the first prompt of two things and the first of one, the share of "
    "the UNet's cross-attention that each dream query gets at each place of the latent, averaged over heads, layers "
    "and steps. A query has the same place in both grids. Black is none, white the largest share in the figure, "
    "on a square-root scale.",
    "figure8_subject": "Figure 8 of the paper: subject-driven pictures of a model that was trained on documents with "
    "pictures in context, the first items.",
}
