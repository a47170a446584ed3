//! The ticker and the slices: whatever the order, a guest that runs on is ticked.

use std::sync::Arc;

use loom::thread;

use crate::rest::Rest;
use crate::sync::{AtomicBool, AtomicUsize};

fn awake() -> Arc<Rest> {
    Arc::new(Rest { running: AtomicUsize::new(0), asleep: AtomicBool::new(false) })
}

/// Sleeps as the ticker does and answers once it is up again. A sleep without end is reported by
/// loom as a deadlock.
fn ticker(rest: &Arc<Rest>) -> thread::JoinHandle<()> {
    let rest = rest.clone();
    thread::spawn(move || rest.sleep(thread::park))
}

#[test]
fn a_slice_that_runs_on_ends_the_ticker_s_sleep() {
    loom::model(|| {
        let rest = awake();
        let ticker = ticker(&rest);
        rest.begin(|| ticker.thread().unpark());
        ticker.join().unwrap();
        assert!(!rest.is_idle());
    });
}

#[test]
fn a_slice_that_comes_and_goes_does_not_keep_another_s_wake_up() {
    loom::model(|| {
        let rest = awake();
        let ticker = ticker(&rest);
        let waker = ticker.thread().clone();
        let short = {
            let (rest, waker) = (rest.clone(), waker.clone());
            thread::spawn(move || {
                rest.begin(|| waker.unpark());
                rest.end();
            })
        };
        rest.begin(|| waker.unpark());
        short.join().unwrap();
        ticker.join().unwrap();
    });
}

#[test]
fn the_ticker_can_go_back_to_sleep_between_slices() {
    loom::model(|| {
        let rest = awake();
        let ticker = {
            let rest = rest.clone();
            thread::spawn(move || {
                rest.sleep(thread::park);
                rest.sleep(thread::park);
            })
        };
        let waker = ticker.thread().clone();
        rest.begin(|| waker.unpark());
        rest.end();
        rest.begin(|| waker.unpark());
        ticker.join().unwrap();
    });
}

/// What the model is worth: it finds the fault of a ticker that looks first and sleeps then.
#[test]
#[should_panic(expected = "deadlock")]
fn a_ticker_that_looks_before_it_says_that_it_sleeps_is_found_out() {
    use crate::sync::Ordering::SeqCst;

    loom::model(|| {
        let rest = awake();
        let ticker = {
            let rest = rest.clone();
            thread::spawn(move || {
                if rest.is_idle() {
                    rest.asleep.store(true, SeqCst);
                    while rest.asleep.load(SeqCst) {
                        thread::park();
                    }
                }
            })
        };
        let waker = ticker.thread().clone();
        rest.begin(|| waker.unpark());
        ticker.join().unwrap();
    });
}
