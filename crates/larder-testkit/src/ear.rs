use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder::backplane::{Backplane, Notice};
use larder::store::{Position, StoreError};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;

/// A listener of a bus in a task of its own, so that a test can ask what it heard.
///
/// Every wait ends after 10 s of real time with a panic that says what did not come. Dropping it
/// ends the listening.
///
/// ```
/// use std::sync::Arc;
/// use larder::backplane::{Backplane, LocalBus};
/// use larder_testkit::Ear;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let bus = LocalBus::new();
/// let mut ear = Ear::open(Arc::new(bus.clone()), "shop").await;
/// let position = bus.publish("shop", "hello".into()).await.unwrap();
/// assert_eq!(ear.message().await, (Some(position), "hello".into()));
/// # });
/// ```
#[derive(Debug)]
pub struct Ear {
    heard: UnboundedReceiver<Heard>,
    task: JoinHandle<()>,
    server: Option<u64>,
}

#[derive(Debug)]
enum Heard {
    Notice(Notice),
    End(StoreError),
}

/// Longer than anything takes that a test waits for.
const PATIENCE: Duration = Duration::from_secs(10);

impl Ear {
    /// Begins to listen, and returns at once.
    pub fn begin(bus: Arc<dyn Backplane>, channel: &str) -> Self {
        let (tell, heard) = unbounded_channel();
        let channel = channel.to_owned();
        let task = tokio::spawn(async move {
            // The test that does not ask any more has dropped its end.
            let mut notify = |notice| drop(tell.send(Heard::Notice(notice)));
            let end = bus.listen(&channel, &mut notify).await;
            let _ = tell.send(Heard::End(end));
        });
        Self {
            heard,
            task,
            server: None,
        }
    }

    /// Begins to listen, and returns once [`Notice::Listening`] came.
    pub async fn open(bus: Arc<dyn Backplane>, channel: &str) -> Self {
        let mut ear = Self::begin(bus, channel);
        while ear.server.is_none() {
            match ear.next().await {
                Notice::Listening { server } => ear.server = Some(server),
                Notice::Watching => {}
                other => panic!("{other:?} came before Listening"),
            }
        }
        ear
    }

    /// Who answered [`Ear::open`].
    pub fn server(&self) -> u64 {
        match self.server {
            Some(server) => server,
            None => panic!("only an ear that was opened knows its server"),
        }
    }

    /// What it was told next. Panics if the listening ended instead.
    pub async fn next(&mut self) -> Notice {
        match self.hear("a notice").await {
            Heard::Notice(notice) => notice,
            Heard::End(error) => panic!("the listening ended: {error:?}"),
        }
    }

    /// The next notice, which must be a message.
    pub async fn message(&mut self) -> (Option<Position>, Bytes) {
        match self.next().await {
            Notice::Message { position, message } => (position, message),
            other => panic!("{other:?} is not a message"),
        }
    }

    /// The next notice, which must be a beat.
    pub async fn beat(&mut self) -> (Position, Bytes) {
        match self.next().await {
            Notice::Beat { position, message } => (position, message),
            other => panic!("{other:?} is not a beat"),
        }
    }

    /// What it was told and the test has not asked for yet.
    pub fn pending(&mut self) -> Vec<Notice> {
        std::iter::from_fn(|| match self.heard.try_recv() {
            Ok(Heard::Notice(notice)) => Some(notice),
            _ => None,
        })
        .collect()
    }

    /// Waits for the end of the listening, and passes over what was told until then.
    pub async fn end(&mut self) -> StoreError {
        loop {
            if let Heard::End(error) = self.hear("the end of the listening").await {
                return error;
            }
        }
    }

    /// Stops listening; returns once the listening is dropped.
    pub async fn close(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    async fn hear(&mut self, what: &str) -> Heard {
        match tokio::time::timeout(PATIENCE, self.heard.recv()).await {
            Ok(Some(heard)) => heard,
            Ok(None) => panic!("the listener panicked, or its end was asked for twice"),
            Err(_) => panic!("waited {PATIENCE:?} for {what}"),
        }
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.task.abort();
    }
}
