"""Studies: answers with an interval. They work on any experiment, and know no architecture."""
