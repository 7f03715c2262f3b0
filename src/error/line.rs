//! The error line: how an error is displayed.

use std::fmt;

use super::{Error, ErrorKind, ErrorParts, VOUCH};
use crate::journal::{OperationReport, OutOfTime, ShortDuration};
use crate::policy::StopReason;
use crate::problem;
use crate::resume::without_queries;

impl Error {
    /// Returns what the server says about its error, shortened.
    fn server_words(&self) -> Option<String> {
        let answer = self.0.answer.as_ref().filter(|_| self.0.kind == ErrorKind::Status)?;
        let shown = self.idempotency_key().map(|key| (key.as_str(), key.to_string()));
        let hidden = shown.as_ref().map(|(key, shown)| (*key, shown.as_str()));
        problem::words(&answer.headers, &answer.body, hidden)
    }

    /// Returns the innermost cause of a failure on this side, shortened. Only the caller can mend
    /// it, and the other words do not tell what it is.
    fn root_cause(&self) -> Option<String> {
        let is_here = [ErrorKind::Build, ErrorKind::RequestBody, ErrorKind::AttemptHook, ErrorKind::Credentials];
        if !is_here.contains(&self.0.kind) {
            return None;
        }
        problem::one_line(&without_queries(&self.causes().last()?.to_string()))
    }

    /// Returns the failure and its causes on one line, without the report.
    pub(crate) fn in_short(&self) -> String {
        self.causes()
            .fold(self.0.what.to_string(), |text, cause| format!("{text}: {}", without_queries(&cause.to_string())))
    }

    /// Writes a line for each cause, in the alternate form.
    fn write_causes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            for cause in self.causes() {
                write!(f, "\n  caused by: {}", without_queries(&cause.to_string()))?;
            }
        }
        Ok(())
    }

    fn causes(&self) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
        std::iter::successors(std::error::Error::source(self), |cause| cause.source())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ErrorParts { what, method, url, report, .. } = &*self.0;
        if let (Some(method), Some(url)) = (method, url) {
            write!(f, "{method} {url}: ")?;
        }
        let Some(report) = report else {
            if self.0.outside.is_some() {
                write!(f, "{what} (no report of an operation; it may have been processed)")?;
                return self.write_causes(f);
            }
            let earlier =
                if self.may_have_been_processed() { " now; an earlier attempt may have been processed" } else { "" };
            return write!(f, "{} (nothing was sent{earlier})", self.in_short());
        };
        f.write_str(what)?;
        if let Some(cause) = self.root_cause() {
            write!(f, ": {cause}")?;
        }
        write_report(f, report)?;
        if let Some(address) = &self.0.redirected_to {
            write!(f, "; redirected to {address}")?;
        }
        if let Some(words) = self.server_words() {
            write!(f, "; the server says \"{words}\"")?;
        }
        if f.alternate() {
            for attempt in report.journal.attempts() {
                write!(f, "\n  {attempt}")?;
            }
        }
        self.write_causes(f)
    }
}

fn write_report(f: &mut fmt::Formatter<'_>, report: &OperationReport) -> fmt::Result {
    let attempts = report.journal.attempts().len();
    let plural = if attempts == 1 { "" } else { "s" };
    match attempts {
        0 => f.write_str(" before the first attempt (")?,
        _ => write!(f, " after {attempts} attempt{plural} in {} (", ShortDuration(report.elapsed))?,
    }
    if report.stop != StopReason::Done {
        write_stop(f, report)?;
    }
    f.write_str(if report.may_have_been_processed { "may have been processed" } else { "not processed" })?;
    if let Some(key) = &report.key {
        write!(f, "; key {key}")?;
    }
    if let Some(wait) = report.retry_after {
        write!(f, "; retry after {}", ShortDuration(wait))?;
    }
    f.write_str(")")?;
    if let Some(reason) = report.not_followed {
        write!(f, "; {}", reason.as_str())?;
    }
    if let Some(advice) = report.withheld.as_str() {
        write!(f, "; {advice}")?;
    }
    if report.stop == StopReason::KeyNotTrusted {
        write!(f, "; {VOUCH}")?;
    }
    Ok(())
}

fn write_stop(f: &mut fmt::Formatter<'_>, report: &OperationReport) -> fmt::Result {
    let reason = report.stop.as_str();
    match report.out_of_time.map(OutOfTime::as_str) {
        Some(limit) if report.stop == StopReason::DeadlineExceeded => write!(f, "{reason}: {limit}; "),
        Some(limit) if report.stop == StopReason::RetryAfterTooLong => write!(f, "{reason} for {limit}; "),
        _ => write!(f, "{reason}; "),
    }
}

/// Prints the kind and all of `{:#}`: the line, the attempts and the causes. So `unwrap` shows as
/// much as a log.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self:#}", self.0.kind)
    }
}
