//! A Realm workflow component.
