//! Deaths and the state's lock: whatever the order, none is forgotten.

use std::sync::Arc;

use loom::thread;

use crate::deaths::Deaths;
use crate::sync::Mutex;

struct Instance {
    deaths: Deaths<usize>,
    /// Who has been buried.
    state: Mutex<Vec<usize>>,
}

impl Instance {
    fn new() -> Arc<Self> {
        Arc::new(Instance { deaths: Deaths::new(), state: Mutex::new(Vec::new()) })
    }

    /// What the resource does when a process dies.
    fn down(&self, who: usize) {
        if let Some(state) = self.deaths.tell(who, &self.state) {
            self.deaths.unlock(&self.state, state, |buried, who| buried.push(who));
        }
    }

    /// What every operation does with the lock.
    fn operate(&self) {
        let state = self.state.lock();
        self.deaths.unlock(&self.state, state, |buried, who| buried.push(who));
    }

    fn buried(&self) -> Vec<usize> {
        let mut buried = self.state.lock().clone();
        buried.sort();
        buried
    }
}

#[test]
fn a_death_during_an_operation_is_dealt_with() {
    loom::model(|| {
        let instance = Instance::new();
        let dying = {
            let instance = instance.clone();
            thread::spawn(move || instance.down(1))
        };
        instance.operate();
        dying.join().unwrap();
        assert_eq!(instance.buried(), [1]);
    });
}

#[test]
fn two_deaths_at_once_are_both_dealt_with_and_once() {
    // All orders there are take minutes.
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let instance = Instance::new();
        let dying: Vec<_> = [1, 2]
            .into_iter()
            .map(|who| {
                let instance = instance.clone();
                thread::spawn(move || instance.down(who))
            })
            .collect();
        instance.operate();
        for thread in dying {
            thread.join().unwrap();
        }
        assert_eq!(instance.buried(), [1, 2]);
    });
}

/// What the model is worth: it finds the fault of a lock that is let go and not looked after.
#[test]
#[should_panic]
fn a_death_that_nobody_looks_for_after_the_lock_is_found_out() {
    loom::model(|| {
        let instance = Instance::new();
        let dying = {
            let instance = instance.clone();
            thread::spawn(move || instance.down(1))
        };
        drop(instance.state.lock());
        dying.join().unwrap();
        assert_eq!(instance.buried(), [1]);
    });
}
