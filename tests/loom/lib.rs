//! `src/mailbox.rs` under loom, which tries every order of its atomic steps and every value that the memory model
//! lets a load see. A lost wake-up shows as a deadlock.
//!
//! A package of its own, because under `--cfg loom` the rest of hubbub neither has to build nor could.

#![cfg(all(test, loom))]

#[path = "../../src/mailbox.rs"]
mod mailbox;
mod sync;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use loom::sync::Notify;
use loom::thread;
use mailbox::{Receiver, Sender, Urgency, Weigh, mailbox};

/// What each test may take back and forth between threads; with more, the runs take minutes and find no more.
const PREEMPTIONS_MAX: usize = 2;

/// A batch's only item: its number, and it weighs two.
#[derive(Debug, PartialEq, Eq)]
struct Item(u8);

impl Weigh for Item {
    fn weight(&self) -> usize {
        2
    }
}

fn model(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS_MAX);
    builder.check(run);
}

fn send_in_thread(
    sender: &Sender<Item>,
    batches: &'static [(u8, Urgency)],
) -> thread::JoinHandle<()> {
    let sender = sender.clone();
    thread::spawn(move || {
        for &(number, urgency) in batches {
            sender.try_send(vec![Item(number)], urgency).expect("there is room");
        }
    })
}

/// What is there now.
fn drain(receiver: &Receiver<Item>, sender: &Sender<Item>, sent_max: usize) -> Vec<u8> {
    let mut numbers = Vec::new();
    while let Some(batch) = receiver.try_recv() {
        assert!(sender.depth() <= 2 * sent_max, "depth went below 0: {}", sender.depth());
        numbers.extend(batch.iter().map(|item| item.0));
    }
    numbers
}

struct Task(Notify);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.0.notify();
    }
}

/// Polls, and again whenever woken.
fn block_on(mut poll: impl FnMut(&mut Context<'_>) -> Poll<()>) {
    let task = Arc::new(Task(Notify::new()));
    let waker = Waker::from(task.clone());
    while poll(&mut Context::from_waker(&waker)).is_pending() {
        task.0.wait();
    }
}

/// Sleeps until so many batches came.
fn sleep_until(receiver: &Receiver<Item>, sender: &Sender<Item>, got: &mut Vec<u8>, n: usize) {
    while got.len() < n {
        block_on(|cx| receiver.poll_wait(cx));
        receiver.set_awake();
        got.extend(drain(receiver, sender, n));
    }
}

#[test]
fn a_sleeper_is_woken_by_either_of_two_senders() {
    model(|| {
        let (sender, unbound) = mailbox(2);
        let threads = [
            send_in_thread(&sender, &[(1, Urgency::Relaxed)]),
            send_in_thread(&sender, &[(2, Urgency::Prompt)]),
        ];
        let receiver = unbound.bind();
        let mut got = Vec::new();
        sleep_until(&receiver, &sender, &mut got, 2);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(sender.depth(), 0);
    });
}

#[test]
fn one_sender_and_a_sleeper_that_sleeps_again() {
    model(|| {
        let (sender, unbound) = mailbox(2);
        let thread = send_in_thread(&sender, &[(1, Urgency::Relaxed), (2, Urgency::Relaxed)]);
        let receiver = unbound.bind();
        let mut got = Vec::new();
        sleep_until(&receiver, &sender, &mut got, 2);
        assert_eq!(got, [1, 2]);
        thread.join().unwrap();
        assert_eq!(sender.depth(), 0);
    });
}

#[test]
fn a_prompt_batch_ends_a_pause_and_is_there_then() {
    model(|| {
        let (sender, unbound) = mailbox(2);
        let thread = send_in_thread(&sender, &[(1, Urgency::Relaxed), (2, Urgency::Prompt)]);
        let receiver = unbound.bind();
        block_on(|cx| receiver.poll_paused(cx));
        receiver.set_awake();
        assert_eq!(drain(&receiver, &sender, 2), [1, 2]);
        thread.join().unwrap();
        assert_eq!(sender.depth(), 0);
    });
}

struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_relaxed_batch_wakes_nobody_out_of_a_pause_and_is_found_after_it() {
    model(|| {
        let (sender, unbound) = mailbox(2);
        let thread = send_in_thread(&sender, &[(1, Urgency::Relaxed)]);
        let receiver = unbound.bind();
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(count.clone());
        assert!(receiver.poll_paused(&mut Context::from_waker(&waker)).is_pending());
        // The pause's timer.
        receiver.set_awake();
        let mut got = drain(&receiver, &sender, 1);
        assert_eq!(count.0.load(Ordering::SeqCst), 0, "woken out of a pause");
        sleep_until(&receiver, &sender, &mut got, 1);
        thread.join().unwrap();
        assert_eq!(sender.depth(), 0);
    });
}

/// As the shard does: a pause that its timer or a prompt batch ends, then sleep.
#[test]
fn a_pause_then_sleep_with_a_sender_of_each_urgency() {
    model(|| {
        let (sender, unbound) = mailbox(2);
        let threads = [
            send_in_thread(&sender, &[(1, Urgency::Relaxed)]),
            send_in_thread(&sender, &[(2, Urgency::Prompt)]),
        ];
        let receiver = unbound.bind();
        let waker = Waker::noop();
        let _ = receiver.poll_paused(&mut Context::from_waker(waker));
        receiver.set_awake();
        let mut got = drain(&receiver, &sender, 2);
        sleep_until(&receiver, &sender, &mut got, 2);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(sender.depth(), 0);
    });
}

#[test]
fn a_full_ring_refuses_one_of_two_and_depth_is_what_lies_there() {
    model(|| {
        let (sender, unbound) = mailbox(1);
        let n_refused = Arc::new(AtomicUsize::new(0));
        let threads = [1, 2].map(|number| {
            let (sender, n_refused) = (sender.clone(), n_refused.clone());
            thread::spawn(move || {
                if let Err(back) = sender.try_send(vec![Item(number)], Urgency::Prompt) {
                    assert_eq!(back, [Item(number)]);
                    n_refused.fetch_add(1, Ordering::SeqCst);
                }
            })
        });
        let receiver = unbound.bind();
        let mut n_got = drain(&receiver, &sender, 2).len();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let n_lying = 2 - n_refused.load(Ordering::SeqCst) - n_got;
        assert_eq!(sender.depth(), 2 * n_lying);
        n_got += drain(&receiver, &sender, 2).len();
        assert_eq!(n_got + n_refused.load(Ordering::SeqCst), 2);
        assert_eq!(sender.depth(), 0);
    });
}
