//! Networks and ports of a running pod: attach, detach, publish, unpublish, one after the other.
//!
//! *Invariants:* the record says what is wanted, and that it is not done yet, before anything is done; a supervisor that
//! finds such a record finishes it. What cannot be attached or published is taken out of the record again.

use std::rc::Rc;

use super::super::control::{Answer, Request};
use super::super::ports;
use super::super::record::{self, Changes, Interface, PublishedPort, Sandbox};
use super::super::{Error, Result, interfaces};
use super::clients::Client;
use super::{Context, work};
use crate::compose::project::Network;

/// Carries out a request and answers it.
pub fn perform(context: &Rc<Context>, request: Request, client: Client) {
    let context = context.clone();
    tokio::task::spawn_local(async move {
        let _alone = context.changing.lock().await;
        let done = match request {
            _ if context.pod.project.on_host() => Err(Error::Other(format!(
                "pod {} is on the host's own network",
                context.dir.name
            ))),
            Request::Attach { network } => attach(&context, *network).await,
            Request::Detach { interface } => detach(&context, &interface).await,
            Request::Publish { port } => publish(&context, port).await,
            Request::Unpublish { port } => unpublish(&context, &port).await,
            _ => Ok(()),
        };
        client.send(&match done {
            Ok(()) => Answer::Done {
                exit_codes: Vec::new(),
            },
            Err(error) => Answer::failed(error.to_string()),
        });
    });
}

/// Finishes what a killed supervisor began.
pub async fn resume(context: &Rc<Context>) {
    let _alone = context.changing.lock().await;
    let finished = match changes(context) {
        Ok(changes) if changes.pending => carry_out(context, changes).await,
        other => other.map(drop),
    };
    if let Err(error) = finished {
        context.note("", format!("networks: {error}"));
    }
}

fn changes(context: &Context) -> Result<Changes> {
    Ok(record::read(&context.dir.changes())?.unwrap_or_default())
}

fn published(context: &Context) -> Result<Vec<PublishedPort>> {
    Ok(record::read(&context.dir.ports())?.unwrap_or_default())
}

/// Writes that there is something to do, has it done, writes that it is done.
async fn carry_out(context: &Context, mut changes: Changes) -> Result<()> {
    changes.version = record::VERSION;
    changes.pending = true;
    record::put(&context.dir.changes(), &changes)?;
    let dir = &context.dir.dir;
    let args = ["sandbox-change".as_ref(), dir.as_os_str()];
    let done = work::step(&args, &dir.join("error.json")).await;
    // also after a failure: some of it may be done
    if let Some(sandbox) = record::read::<Sandbox>(&context.dir.sandbox())? {
        context.sandbox.replace(sandbox);
    }
    done?;
    changes.pending = false;
    record::put(&context.dir.changes(), &changes)
}

async fn attach(context: &Context, network: Network) -> Result<()> {
    let before = changes(context)?;
    let mut wanted = before.clone();
    let name = network.attachment.interface_name.clone();
    let name = name.unwrap_or_default();
    let again = before.attached.contains(&network);
    if !again {
        let taken = |(_, other): &(Network, String)| *other == name;
        if interfaces::wanted(&context.pod.project, &before)?
            .iter()
            .any(taken)
        {
            return Err(Error::Other(format!(
                "pod {} has an interface {name} already",
                context.dir.name
            )));
        }
        wanted.attached.push(network.clone());
    }
    if again && !before.pending {
        return Ok(());
    }
    context.note("", format!("attach {} as {name}", network.name));
    let error = match carry_out(context, wanted).await {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    if context
        .sandbox
        .borrow()
        .interfaces
        .iter()
        .any(|i| i.name == name)
    {
        // it is there: what failed was another part, which stays to be done
        return Err(error);
    }
    let mut withdrawn = before;
    withdrawn.attached.retain(|other| *other != network);
    let undone = carry_out(context, withdrawn).await;
    Error::all([Some(error), undone.err()].into_iter().flatten())
}

async fn detach(context: &Context, name: &str) -> Result<()> {
    let mut changes = changes(context)?;
    let wanted = interfaces::wanted(&context.pod.project, &changes)?;
    let Some((network, _)) = wanted.into_iter().find(|(_, other)| other == name) else {
        if changes.pending {
            return carry_out(context, changes).await;
        }
        return Ok(());
    };
    context.note("", format!("detach {} ({name})", network.name));
    let before = changes.attached.len();
    changes
        .attached
        .retain(|n| n.attachment.interface_name.as_deref() != Some(name));
    if changes.attached.len() == before {
        changes.detached.insert(name.to_string());
    }
    let publishes = |i: &Interface| i.name != name && i.publishes && !i.internal;
    let elsewhere = context.sandbox.borrow().interfaces.iter().any(publishes);
    let stays = |port: &PublishedPort| match &port.network {
        Some(key) => *key != network.key,
        None => elsewhere,
    };
    if !published(context)?.iter().all(stays) {
        return Err(Error::Other(format!(
            "ports of the pod are published on {name}, and on no other network of it they can or may be; unpublish them first"
        )));
    }
    carry_out(context, changes).await
}

async fn publish(context: &Context, port: PublishedPort) -> Result<()> {
    let before = published(context)?;
    let changes = changes(context)?;
    let same = |p: &PublishedPort| p.service == port.service && p.mapping == port.mapping;
    let there = before.iter().any(same);
    if there && !changes.pending {
        return Ok(());
    }
    if !context.ports.borrow().has(&port.mapping) {
        let held = context.ports.borrow_mut().hold(port.mapping.clone());
        held.map_err(|error| Error::Start {
            code: 125,
            message: ports::refusal(&port.mapping, None, error),
            service: Some(port.service.clone()),
        })?;
    }
    context.note("", format!("publish {}", port.mapping));
    let mut wanted = before.clone();
    if !there {
        wanted.push(port.clone());
    }
    let error = match record_ports(context, &wanted, changes.clone()).await {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    context.ports.borrow_mut().release(&port.mapping);
    let rest: Vec<_> = before.into_iter().filter(|p| *p != port).collect();
    let undone = record_ports(context, &rest, changes).await;
    Error::all([Some(error), undone.err()].into_iter().flatten())
}

async fn unpublish(context: &Context, port: &PublishedPort) -> Result<()> {
    let mut wanted = published(context)?;
    let changes = changes(context)?;
    let before = wanted.len();
    wanted.retain(|p| p != port);
    if wanted.len() == before && !changes.pending {
        return Ok(());
    }
    context.note("", format!("unpublish {}", port.mapping));
    record_ports(context, &wanted, changes).await?;
    context.ports.borrow_mut().release(&port.mapping);
    Ok(())
}

/// The mark that something is to do is there before what is to do: without the mark nobody would look.
async fn record_ports(context: &Context, ports: &[PublishedPort], changes: Changes) -> Result<()> {
    let marked = Changes {
        version: record::VERSION,
        pending: true,
        ..changes.clone()
    };
    record::put(&context.dir.changes(), &marked)?;
    record::put(&context.dir.ports(), &ports.to_vec())?;
    carry_out(context, changes).await
}
