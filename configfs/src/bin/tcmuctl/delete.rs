//! `tcmuctl delete`.

use std::collections::HashSet;
use std::env;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::json;
use tcmu_configfs::{DeleteOptions, Error, Result};

use crate::args::{Common, Delete};
use crate::{Failure, complain, output, tree, view};

/// How many LUNs are deleted at a time. Of the time that one takes, the kernel waits most, and it can
/// wait for many at once.
const AT_ONCE: usize = 16;

pub(crate) fn run(common: &Common, delete: Delete) -> std::result::Result<(), Failure> {
    let Delete {
        mut names,
        hba,
        force,
    } = delete;
    let mut seen = HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    let view = view(common);
    let options = |name: &str| {
        DeleteOptions {
        force,
        hba,
        held: view.is_held(name, hba).then(|| {
            format!(
                "`tcmuctl drain` has tcmu-runner leave it alone: wait until that ends, or fail what \
                 waits with `tcmuctl delete --force {name}`"
            )
        }),
    }
    };
    let (tree, program) = (tree(common)?, env::current_exe()?);
    let outcomes = in_parallel(&names, || {
        // With a helper of its own, one that the kernel keeps waiting holds up no other.
        let tree = tree.clone().in_processes(&program);
        move |name: &str| tree.delete(name, &options(name))
    });

    let mut complaints: Vec<String> = Vec::new();
    let mut deleted = Vec::new();
    for (name, outcome) in outcomes {
        match outcome {
            Ok(()) => deleted.push(name),
            Err(error) => {
                let complaint = error.to_string();
                // What is wrong with all of them is said once.
                if !complaints.contains(&complaint) {
                    complaints.push(complaint);
                }
            }
        }
    }
    if common.json {
        match (&names[..], &deleted[..]) {
            ([_], []) => {}
            ([_], [name]) => output::json(&json!({ "deleted": name }))?,
            _ => output::json(&json!({ "deleted": deleted }))?,
        }
    }
    for complaint in &complaints {
        complain(complaint);
    }
    if complaints.is_empty() {
        Ok(())
    } else {
        Err(Failure::Told)
    }
}

/// Has every name dealt with by one of the workers that `worker` makes, until one of them is
/// interrupted. Returns what came of those that were begun, in the order of the names.
fn in_parallel<W: Fn(&str) -> Result<()>>(
    names: &[String],
    worker: impl Fn() -> W + Sync,
) -> Vec<(&str, Result<()>)> {
    let next = AtomicUsize::new(0);
    let work = || {
        let worker = worker();
        let mut outcomes = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(name) = names.get(number) else {
                return outcomes;
            };
            let outcome = worker(name);
            if matches!(outcome, Err(Error::Interrupted)) {
                next.store(names.len(), Ordering::Relaxed);
            }
            outcomes.push((number, outcome));
        }
    };
    let mut outcomes: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..names.len().min(AT_ONCE))
            .map(|_| scope.spawn(work))
            .collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    });
    outcomes.sort_by_key(|(number, _)| *number);
    outcomes
        .into_iter()
        .map(|(number, outcome)| (&*names[number], outcome))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("lun{n}")).collect()
    }

    #[test]
    fn all_are_dealt_with_many_at_a_time() {
        let names = names(3 * AT_ONCE);
        // Nobody passes unless so many are at work.
        let all = Barrier::new(AT_ONCE);
        let outcomes = in_parallel(&names, || {
            |name: &str| {
                all.wait();
                match name {
                    "lun5" => Err(Error::NotFound(name.to_owned())),
                    _ => Ok(()),
                }
            }
        });
        let order: Vec<&str> = outcomes.iter().map(|(name, _)| *name).collect();
        assert_eq!(order, names);
        let failed: Vec<&str> = outcomes
            .iter()
            .filter(|(_, outcome)| outcome.is_err())
            .map(|(name, _)| *name)
            .collect();
        assert_eq!(failed, ["lun5"]);
    }

    #[test]
    fn an_interrupt_leaves_the_rest_alone() {
        let names = names(1000);
        let outcomes = in_parallel(&names, || |_: &str| Err(Error::Interrupted));
        assert!(
            (1..=AT_ONCE).contains(&outcomes.len()),
            "{}",
            outcomes.len()
        );
    }
}
