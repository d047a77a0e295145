"""The caption of each figure, for the index (`figures.py`) and for `snakemake --report`."""

CAPTIONS = {
    "learning_curves": "Losses of every training stage over its steps: thin lines as measured, thick lines smoothed.",
    "drawings": "The real picture and what each model draws for the prompt above it: the first prompts of each kind of "
    "scene, two with combinations seen in training and one with a held-out combination.",
    "figure3_documents": "Figure 3 of the paper: the first stories in which the model draws pictures. Only the first "
    "sentence is given; the model writes the others, draws all pictures and decides where they stand.",
    "figure4_questions": "Figure 4 of the paper: questions that the comprehension-only model (A) and the joint one "
    "(B) answer differently: the first of each question type, then the second. ✓ marks right answers.",
    "figure5_in_context": "Figure 5 of the paper: pictures generated from context pictures and a sentence (editing, "
    "subject-driven, composition). Stable Diffusion gets only the sentence. For each kind the first item with "
    "combinations seen in training, and the first with a held-out one.",
    "figure6_attention": "Figure 6 of the paper: for the first prompt with two things and the first with one, the "
    "share of the decoder's cross-attention that each dream query gets at each position of the latent, averaged over "
    "heads, layers and steps. A query has the same place in both grids. Black is zero, white the largest share in the "
    "figure, on a square-root scale.",
    "figure8_subject": "Figure 8 of the paper: the first subject-driven items, drawn by a model that was trained on "
    "documents with context pictures.",
}
