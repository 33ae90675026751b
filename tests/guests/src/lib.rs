//! Hostile and well-behaved guests, one behaviour each.
