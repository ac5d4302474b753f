//! The enforcer against a kernel that keeps a diary and fails on demand.
