//! Guests for the sandbox's tests. Each file of `examples/` is a component with one behaviour; most are hostile.
