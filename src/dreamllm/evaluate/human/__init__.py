"""Human evaluation: the form on which raters rate documents, and the metrics of their ratings."""
