//! The ranks of this process on their threads, and what they tell of a request.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use burn::tensor::Tensor;
use xdit_core::comm::{CommError, Communicator};
use xdit_core::mesh::{Axis, Mesh};
use xdit_core::observer::{Observer, Phase};

use crate::pipeline::error::PipelineError;
use crate::pipeline::worker::Worker;

type Job = Box<dyn FnOnce(&mut Result<Worker, CommError>) + Send>;

/// The ranks of this process. Dropping them ends their threads.
#[derive(Default)]
pub struct Workers {
    threads: Vec<Thread>,
    /// Whether other processes have ranks as well.
    apart: bool,
}

struct Thread {
    rank: usize,
    slot: usize,
    /// Whether a failure must be told to other processes.
    apart: bool,
    /// Absent once the pipeline lets go.
    jobs: Option<Sender<Job>>,
    handle: Option<JoinHandle<()>>,
}

/// What a job is told, and what it tells.
pub struct Desk<T> {
    rank: usize,
    cancelled: Arc<AtomicBool>,
    events: Sender<(usize, Event<T>)>,
}

/// What a rank tells of a request.
enum Event<T> {
    Begin(Phase, String, u64),
    Advance(Phase, u64),
    Blocks(usize, usize, usize),
    End(Phase),
    Latents(usize, Box<Tensor<3>>),
    Warn(String),
    Product(T),
    Done(Result<(), PipelineError>),
}

impl Workers {
    /// One thread for each communicator; those of other processes are started there.
    pub fn launch(mesh: &Mesh, ranks: Vec<Box<dyn Communicator>>) -> Self {
        let apart = ranks.len() < mesh.world_size();
        let replica = |rank| mesh.coordinate(rank, Axis::Data);
        let places: Vec<_> = ranks.iter().map(|world| (replica(world.rank()), world.slot(), world.rank())).collect();
        // of a replica's ranks on one device the first decodes: they would only get in each other's way
        let decodes = |(replica, slot, rank)| {
            let before = |other: &(usize, usize, usize)| (other.0, other.1) == (replica, slot) && other.2 < rank;
            !places.iter().any(before)
        };
        let decodes: Vec<_> = places.iter().copied().map(decodes).collect();
        let launch = |(world, decodes)| Thread::launch(*mesh, world, apart, decodes);
        Self { threads: ranks.into_iter().zip(decodes).map(launch).collect(), apart }
    }

    /// Whether other processes have ranks as well, with which nothing is shared but what is sent.
    pub fn are_apart(&self) -> bool {
        self.apart
    }

    /// The number in the world and the device of each; see [`Communicator::slot`].
    pub fn ranks(&self) -> Vec<(usize, usize)> {
        self.threads.iter().map(|thread| (thread.rank, thread.slot)).collect()
    }

    /// Has some of the ranks do `job` at once, and waits for all of them. What the first of them tells goes to the observer,
    /// and what any of them makes to `each`. A break of either ends the request as cancelled.
    ///
    /// - `which`: indices of ranks of this process
    ///
    /// # Errors
    /// Of several ranks' errors the one that is not about another rank, else the first.
    pub fn run<T: Send + 'static>(
        &self,
        which: &[usize],
        job: impl Fn(&mut Worker, &mut Desk<T>) -> Result<(), PipelineError> + Send + Sync + 'static,
        observer: &mut dyn Observer,
        each: &mut dyn FnMut(usize, T) -> ControlFlow<()>,
    ) -> Result<(), PipelineError> {
        let (job, cancelled) = (Arc::new(job), Arc::new(AtomicBool::new(false)));
        let (events, inbox) = mpsc::channel();
        for &i in which {
            let desk = Desk { rank: i, cancelled: Arc::clone(&cancelled), events: events.clone() };
            self.threads[i].give(Arc::clone(&job), desk);
        }
        drop(events);
        watch(which, &inbox, &cancelled, observer, each)
    }
}

/// Follows the ranks until all of them are done, or dead.
fn watch<T>(
    which: &[usize],
    inbox: &Receiver<(usize, Event<T>)>,
    cancelled: &AtomicBool,
    observer: &mut dyn Observer,
    each: &mut dyn FnMut(usize, T) -> ControlFlow<()>,
) -> Result<(), PipelineError> {
    let (mut done, mut failed, mut warnings) = (Vec::new(), None::<PipelineError>, Vec::new());
    let (mut phase, mut broken) = (Phase::Load, None);
    let cancel = || cancelled.store(true, Ordering::Relaxed);
    while let Ok((rank, event)) = inbox.recv() {
        if let Event::Begin(begun, ..) = &event {
            phase = *begun;
        }
        let flow = match event {
            Event::Warn(message) if !warnings.contains(&message) => {
                observer.warn(&message);
                warnings.push(message);
                ControlFlow::Continue(())
            }
            Event::Product(product) => each(rank, product),
            Event::Done(result) => {
                done.push(rank);
                if let Err(error) = result {
                    cancel();
                    if failed.as_ref().is_none_or(|failed| failed.is_told() && !error.is_told()) {
                        failed = Some(error);
                    }
                }
                ControlFlow::Continue(())
            }
            event if rank == which[0] => show(event, observer),
            _ => ControlFlow::Continue(()),
        };
        if flow.is_break() {
            broken.get_or_insert(phase);
            cancel();
        }
    }
    let lost = which.iter().find(|rank| !done.contains(rank));
    match (failed, lost) {
        (Some(error), _) => Err(error),
        (None, Some(&rank)) => Err(PipelineError::LostRank { rank }),
        (None, None) => broken.map_or(Ok(()), |phase| Err(PipelineError::Cancelled(phase))),
    }
}

fn show<T>(event: Event<T>, observer: &mut dyn Observer) -> ControlFlow<()> {
    match event {
        Event::Begin(phase, what, total) => observer.begin(phase, &what, total),
        Event::Advance(phase, done) => return observer.advance(phase, done),
        Event::Blocks(step, done, total) => return observer.blocks(step, done, total),
        Event::End(phase) => observer.end(phase),
        Event::Latents(step, latents) => observer.latents(step, &latents),
        Event::Warn(_) | Event::Product(_) | Event::Done(_) => {}
    }
    ControlFlow::Continue(())
}

impl Thread {
    fn launch(mesh: Mesh, world: Box<dyn Communicator>, apart: bool, decodes: bool) -> Self {
        let (rank, slot) = (world.rank(), world.slot());
        let (jobs, inbox) = mpsc::channel::<Job>();
        let work = move || {
            let mut worker = Worker::new(&mesh, world, decodes);
            inbox.into_iter().for_each(|job| job(&mut worker));
        };
        let handle = thread::Builder::new().name(format!("rank {rank}")).spawn(work).ok();
        Self { rank, slot, apart, jobs: Some(jobs), handle }
    }

    /// If the thread is gone, so is the desk: the request hears nothing of this rank.
    fn give<T: Send + 'static>(
        &self,
        job: Arc<impl Fn(&mut Worker, &mut Desk<T>) -> Result<(), PipelineError> + Send + Sync + 'static>,
        mut desk: Desk<T>,
    ) {
        let apart = self.apart;
        let work: Job = Box::new(move |worker| {
            let result = match worker {
                Ok(worker) => job(worker, &mut desk).inspect_err(|error| {
                    if apart {
                        worker.world.abort(&error.to_string());
                    }
                }),
                Err(error) => Err(error.clone().into()),
            };
            desk.tell(Event::Done(result));
        });
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(work);
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(handle) = self.handle.take() {
            // one that panicked has said so
            let _ = handle.join();
        }
    }
}

impl<T> Desk<T> {
    fn tell(&self, event: Event<T>) {
        // nobody listens once the request has ended
        let _ = self.events.send((self.rank, event));
    }

    /// Hands something over.
    pub fn hand_over(&self, product: T) {
        self.tell(Event::Product(product));
    }

    /// Whether somebody wants the request to end.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Ends the request for all ranks.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    fn flow(&self) -> ControlFlow<()> {
        if self.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// What a rank observes is told to the request's observer, whose break comes back with the next call.
impl<T> Observer for Desk<T> {
    fn begin(&mut self, phase: Phase, what: &str, total: u64) {
        self.tell(Event::Begin(phase, what.into(), total));
    }

    fn advance(&mut self, phase: Phase, done: u64) -> ControlFlow<()> {
        self.tell(Event::Advance(phase, done));
        self.flow()
    }

    fn blocks(&mut self, step: usize, done: usize, total: usize) -> ControlFlow<()> {
        self.tell(Event::Blocks(step, done, total));
        self.flow()
    }

    fn end(&mut self, phase: Phase) {
        self.tell(Event::End(phase));
    }

    fn latents(&mut self, step: usize, latents: &Tensor<3>) {
        self.tell(Event::Latents(step, Box::new(latents.clone())));
    }

    fn warn(&mut self, message: &str) {
        self.tell(Event::Warn(message.into()));
    }
}
