//! The Realm server and its command line.
