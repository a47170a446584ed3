//! The ticker and the slices: whatever the order, a guest that runs on is ticked.

use std::sync::Arc;

use loom::thread;

use crate::rest::Rest;
use crate::sync::Ordering::{Relaxed, SeqCst};
use crate::sync::{AtomicBool, AtomicUsize};

struct Node {
    rest: Rest,
    /// As wasmtime's engines have it.
    epoch: AtomicUsize,
    /// How often the ticker has come back from its sleep.
    wakings: AtomicUsize,
}

impl Node {
    fn new() -> Arc<Self> {
        Arc::new(Node {
            rest: Rest {
                begun: AtomicBool::new(false),
                lasting: AtomicUsize::new(0),
                asleep: AtomicBool::new(false),
            },
            epoch: AtomicUsize::new(0),
            wakings: AtomicUsize::new(0),
        })
    }

    /// A ticker that goes to sleep so many times and answers once it is up again. A sleep without
    /// end is a deadlock to loom.
    fn ticker(self: &Arc<Self>, sleeps: usize) -> thread::JoinHandle<()> {
        let node = self.clone();
        thread::spawn(move || {
            for _ in 0..sleeps {
                node.rest.sleep(|| node.tick(), thread::park);
                node.wakings.fetch_add(1, SeqCst);
            }
        })
    }

    fn tick(&self) {
        self.epoch.fetch_add(1, Relaxed);
    }

    /// A slice begins; answers its deadline.
    fn begin(&self, ticker: &thread::Thread) -> usize {
        let deadline = self.epoch.load(Relaxed) + 1;
        self.rest.begin(|| ticker.unpark());
        deadline
    }

    /// What guest code does all the time: whether it was asked, and so is counted from now on.
    fn looks(&self, deadline: usize, ticker: &thread::Thread) -> bool {
        let asked = self.epoch.load(Relaxed) >= deadline;
        if asked {
            self.rest.outlast(|| ticker.unpark());
        }
        asked
    }

    /// A slice goes on after a tick, and then waits for something; answers the deadline it has.
    fn lasts_and_waits(&self, ticker: &thread::Thread) -> usize {
        self.rest.outlast(|| ticker.unpark());
        let deadline = self.epoch.load(Relaxed) + 1;
        self.rest.end();
        deadline
    }

    /// The slice runs on until it is asked, or the ticker has come back so many times. Loom gives up
    /// where neither ever happens.
    fn run_on(&self, deadline: usize, wakings: usize, ticker: &thread::Thread) {
        while self.wakings.load(SeqCst) < wakings && !self.looks(deadline, ticker) {
            thread::yield_now();
        }
    }
}

/// All orders there are take hours.
fn in_few_preemptions(f: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(f);
}

#[test]
fn a_slice_that_runs_on_ends_the_ticker_s_sleep() {
    loom::model(|| {
        let node = Node::new();
        let ticker = node.ticker(1);
        let deadline = node.begin(ticker.thread());
        node.run_on(deadline, 1, ticker.thread());
        ticker.join().unwrap();
    });
}

#[test]
fn a_slice_that_runs_on_is_counted_before_the_ticker_sleeps_again() {
    loom::model(|| {
        let node = Node::new();
        let ticker = node.ticker(2);
        let deadline = node.begin(ticker.thread());
        node.run_on(deadline, 2, ticker.thread());
        ticker.join().unwrap();
    });
}

#[test]
fn a_slice_that_comes_and_goes_does_not_keep_another_s_wake_up() {
    in_few_preemptions(|| {
        let node = Node::new();
        let ticker = node.ticker(1);
        let waker = ticker.thread().clone();
        let short = {
            let (node, waker) = (node.clone(), waker.clone());
            thread::spawn(move || {
                let deadline = node.begin(&waker);
                if node.looks(deadline, &waker) {
                    node.rest.end();
                }
            })
        };
        let deadline = node.begin(&waker);
        node.run_on(deadline, 1, &waker);
        short.join().unwrap();
        ticker.join().unwrap();
    });
}

#[test]
fn the_ticker_can_go_back_to_sleep_between_slices() {
    in_few_preemptions(|| {
        let node = Node::new();
        let ticker = node.ticker(2);
        let waker = ticker.thread().clone();
        let first = node.begin(&waker);
        if node.looks(first, &waker) {
            node.rest.end();
        }
        let second = node.begin(&waker);
        node.run_on(second, 2, &waker);
        ticker.join().unwrap();
    });
}

#[test]
fn a_slice_that_goes_on_with_an_old_deadline_ends_the_ticker_s_sleep() {
    loom::model(|| {
        let node = Node::new();
        let ticker = node.ticker(1);
        let deadline = node.lasts_and_waits(ticker.thread());
        node.rest.begin(|| ticker.thread().unpark());
        node.run_on(deadline, 1, ticker.thread());
        ticker.join().unwrap();
    });
}

#[test]
fn a_slice_that_has_begun_is_seen_once_and_one_that_lasts_always() {
    loom::model(|| {
        let node = Node::new();
        let me = thread::current();
        assert!(node.rest.was_idle());
        let deadline = node.begin(&me);
        assert!(!node.rest.was_idle());
        assert!(node.rest.was_idle());
        node.tick();
        assert!(node.looks(deadline, &me));
        assert!(!node.rest.was_idle());
        assert!(!node.rest.was_idle());
        node.rest.end();
        assert!(node.rest.was_idle());
    });
}

/// What the models are worth: they find the fault of a ticker that says that it sleeps only after
/// its last tick. (The slice runs on for ever then, which is more branches than loom follows.)
#[test]
#[should_panic(expected = "exceeded maximum number of branches")]
fn a_ticker_that_ticks_before_it_says_that_it_sleeps_is_found_out() {
    loom::model(|| {
        let node = Node::new();
        let ticker = {
            let node = node.clone();
            thread::spawn(move || {
                node.tick();
                node.rest.sleep(|| {}, thread::park);
                node.wakings.fetch_add(1, SeqCst);
            })
        };
        let deadline = node.begin(ticker.thread());
        node.run_on(deadline, 1, ticker.thread());
        ticker.join().unwrap();
    });
}

/// And that of a slice that looks at the ticker before its deadline is set.
#[test]
#[should_panic(expected = "exceeded maximum number of branches")]
fn a_slice_that_looks_before_its_deadline_is_set_is_found_out() {
    loom::model(|| {
        let node = Node::new();
        let ticker = node.ticker(1);
        node.rest.begin(|| ticker.thread().unpark());
        let deadline = node.epoch.load(Relaxed) + 1;
        node.run_on(deadline, 1, ticker.thread());
        ticker.join().unwrap();
    });
}

/// And that of one that has waited and goes on without a word.
#[test]
#[should_panic(expected = "exceeded maximum number of branches")]
fn a_slice_that_goes_on_and_does_not_begin_is_found_out() {
    loom::model(|| {
        let node = Node::new();
        let ticker = node.ticker(1);
        let deadline = node.lasts_and_waits(ticker.thread());
        node.run_on(deadline, 1, ticker.thread());
        ticker.join().unwrap();
    });
}
