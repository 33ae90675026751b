//! Seeded simulation of the scheduler.
