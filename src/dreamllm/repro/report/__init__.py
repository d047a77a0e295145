"""What a run is shown and handed on as: the report site, written reports, cards, and the crate."""
