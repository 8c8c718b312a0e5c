//! Types of the Agent Sandbox Operator. No I/O, and no dependency on any other crate of the project.
//!
//! * [`action`]: the records of the action log.
//! * [`sandbox`] and [`policy`]: the two custom resources of group `agentsandbox.dev`, version `v1alpha1`.
//! * [`condition`]: the condition types and reasons that stand in their status.
//! * [`run`]: what operator, recorder and supervisor exchange: the run spec and the completion record.
//! * [`step`]: what recorder and supervisor exchange about the steps of a session.
//! * [`gateway`]: the egress gateway's ports and the registration of recorders at it.
//! * [`isolation`]: how the isolation level that really holds is told from what was observed.
//! * [`watched`]: objects as a watch shows them, whoever wrote them.
//! * [`names`]: labels, annotations, finalizers, paths and environment names that the project owns.

pub mod action;
#[cfg(feature = "crd")]
pub mod condition;
pub mod gateway;
pub mod isolation;
pub mod names;
#[cfg(feature = "crd")]
pub mod policy;
pub mod reason;
pub mod run;
#[cfg(feature = "crd")]
pub mod sandbox;
#[cfg(feature = "crd")]
mod schema;
pub mod step;
#[cfg(feature = "watch")]
pub mod watched;
