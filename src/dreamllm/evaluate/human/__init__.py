"""People as judges: the form on which they rate documents, and the scores of what they sent back."""
