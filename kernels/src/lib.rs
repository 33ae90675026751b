//! Numeric operations of Realm: block formats, reference operations and CPU kernels.
