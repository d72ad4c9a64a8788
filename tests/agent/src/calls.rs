//! How the agent answers each call.
//!
//! Owns the order of what is looked at: path, token, phase, content, ids, claims, state. Leaves what is wrong with a
//! call by itself to [`crate::rules`].

use serde_json::{Value, json};

use crate::codec::Encoding;
use crate::http::Request;
use crate::ids;
use crate::model::{Acks, Answer, Calls, Phase, Reply, Run, State, Stream};
use crate::rules::{self, Refusal, at, refuse, text};
use crate::stream::Out;

impl State {
    /// Path, token and phase of a request to any path; then its call.
    pub(crate) fn request(&mut self, request: &Request, socket: bool) -> Reply {
        let long = request.path == "/slave(1)/api/v1/executor";
        let refusal = if socket && !long && request.path != "/slave(1)/api/v1" {
            Some(refuse(403, ""))
        } else if self.phase == Phase::NoRoutes || !(long || request.path == "/api/v1/executor") {
            Some(refuse(404, ""))
        } else {
            None
        };
        if let Some(refusal) = refusal {
            self.record(
                "call",
                json!(format!("{} {}", request.method, request.path)),
            );
            return Reply::Answer(refusal);
        }
        let claims = match self.claims(request) {
            Ok(claims) => claims,
            Err(refusal) => return Reply::Answer(refusal),
        };
        if self.phase == Phase::Recovering {
            self.record("call", json!("while recovering"));
            return Reply::Answer(rules::recovering());
        }
        let call = rules::parse(
            &request.method,
            request.header("Content-Type"),
            &request.body,
        );
        let call = match call {
            Ok(call) => call,
            Err(refusal) => {
                let body = String::from_utf8_lossy(&request.body);
                self.record(
                    "call",
                    json!(format!("{} {}: {body}", request.method, request.path)),
                );
                return Reply::Answer(refusal);
            }
        };
        self.record("call", call.value.clone());
        let kind = match text(&call.value, &["type"]) {
            "SUBSCRIBE" => Calls::Subscribe,
            _ => Calls::Others,
        };
        let arranged = self.answers.iter().position(|(calls, _)| *calls == kind);
        let arranged = arranged.and_then(|at| self.answers.remove(at));
        match arranged.map(|(_, answer)| answer) {
            Some(Answer::Status(code)) => {
                return Reply::Answer(refuse(code, "arranged by the test"));
            }
            Some(Answer::Redirect(location)) => {
                let mut refusal = refuse(307, "");
                refusal.headers.push(("Location", location));
                return Reply::Answer(refusal);
            }
            Some(Answer::Hang) => return Reply::Hang,
            Some(Answer::Close) => {
                let _ = self.call(&call, claims.as_ref(), request);
                return Reply::Close;
            }
            None => {}
        }
        match self.call(&call, claims.as_ref(), request) {
            Ok(encoding) => Reply::Stream(encoding, call.value),
            Err(answer) => Reply::Answer(answer),
        }
    }

    fn claims(&mut self, request: &Request) -> Result<Option<Value>, Refusal> {
        if !self.settings.token {
            return Ok(None);
        }
        let header = request.header("Authorization");
        let claims = match header.map(|header| header.strip_prefix("Bearer ")) {
            None => Err("Missing 'Authorization' header".to_owned()),
            Some(None) => Err("Malformed 'Authorization' header".to_owned()),
            Some(Some(token)) => ids::claims(token),
        };
        claims.map(Some).map_err(|error| {
            let mut refusal = refuse(401, error);
            let challenge = "Bearer realm=\"mesos-agent-executor\"".to_owned();
            refusal.headers.push(("WWW-Authenticate", challenge));
            refusal
        })
    }

    /// A call that is well formed: the encoding of the stream it opens, or its answer.
    fn call(
        &mut self,
        call: &rules::Call,
        claims: Option<&Value>,
        request: &Request,
    ) -> Result<Encoding, Refusal> {
        let kind = text(&call.value, &["type"]).to_owned();
        for odd in &call.oddities {
            self.violation(format!("{kind}: {odd}"));
        }
        if !call.oddities.is_empty() {
            return Err(refuse(400, call.oddities.join("; ")));
        }
        let mut encoding = call.encoding;
        if kind == "SUBSCRIBE" {
            encoding = rules::accepted(request.header("Accept"))?;
        } else if kind == "HEARTBEAT" {
            return Err(refuse(202, ""));
        } else if self.phase != Phase::Running {
            return Err(rules::recovering());
        }
        if text(&call.value, &["framework_id", "value"]) != self.ids.framework {
            return Err(refuse(400, "Framework cannot be found"));
        }
        let executor = text(&call.value, &["executor_id", "value"]);
        if executor != self.ids.executor || self.run == Run::Terminated {
            return Err(refuse(400, "Executor cannot be found"));
        }
        if let Some(claims) = claims {
            self.claimed(claims)?;
        }
        if self.run == Run::Registering && kind != "SUBSCRIBE" {
            return Err(refuse(403, "Executor is not subscribed"));
        }
        match kind.as_str() {
            "SUBSCRIBE" => return Ok(encoding),
            "UPDATE" => {
                if let Some(status) = at(&call.value, &["update", "status"]) {
                    self.update(status.clone());
                }
            }
            "MESSAGE" => {
                let data = text(&call.value, &["message", "data"]).to_owned();
                self.messages.push_back(data);
            }
            _ => return Err(refuse(501, "")),
        }
        Err(refuse(202, ""))
    }

    fn claimed(&self, claims: &Value) -> Result<(), Refusal> {
        let expected = [
            ("fid", &self.ids.framework, "framework ID"),
            ("eid", &self.ids.executor, "executor ID"),
            ("cid", &self.ids.container, "container ID"),
        ];
        for (key, id, name) in expected {
            if text(claims, &[key]) != id {
                let body = format!(
                    "Authenticated principal '{claims}' does not contain an '{key}' claim with the {name} {id}, \
                     which is set in the call"
                );
                return Err(refuse(403, body));
            }
        }
        Ok(())
    }

    /// A SUBSCRIBE that was let in: its stream takes the place of the one before.
    pub(crate) fn subscribe(&mut self, call: &Value, stream: Stream) {
        self.subscriptions += 1;
        // dropping it ends it
        self.stream = Some(stream);
        let none_left = self.queue.is_empty() && !self.tasks.is_empty();
        let all_killed = self.run == Run::Registering
            && none_left
            && self.tasks.values().all(|task| !task.delivered);
        if self.run == Run::Terminating || self.phase == Phase::Cleanup || all_killed {
            self.event(&json!({"type": "SHUTDOWN"}));
            if self.run == Run::Terminating {
                self.out(Out::End);
            }
            self.run = Run::Terminating;
            return;
        }
        self.run = Run::Subscribed;
        let subscribed = self.subscribed();
        self.event(&subscribed);
        let list = |key: &str| {
            let list = at(call, &["subscribe", key]).and_then(Value::as_array);
            list.cloned().unwrap_or_default()
        };
        let (tasks, updates) = (list("unacknowledged_tasks"), list("unacknowledged_updates"));
        self.missing_updates(&updates);
        for update in updates {
            let status = update.get("status").cloned().unwrap_or_default();
            self.update(status);
        }
        let told: Vec<&str> = tasks
            .iter()
            .map(|task| text(task, &["task_id", "value"]))
            .collect();
        let staging = self.tasks.iter().filter(|(name, task)| {
            task.delivered && task.statuses.is_empty() && !told.contains(&name.as_str())
        });
        let staging: Vec<String> = staging.map(|(name, _)| name.clone()).collect();
        for name in staging {
            let aware = self
                .settings
                .capabilities
                .iter()
                .any(|c| c == "PARTITION_AWARE");
            let state = if aware { "TASK_DROPPED" } else { "TASK_LOST" };
            self.agents_status(
                &name,
                state,
                "REASON_AGENT_RESTARTED",
                "Task launched during agent restart",
            );
            self.violation(format!("SUBSCRIBE without the unacknowledged task {name}"));
        }
        self.deliver();
    }

    /// What was received and never acknowledged has to come again, in the order in which it was sent.
    fn missing_updates(&mut self, updates: &[Value]) {
        let told: Vec<&str> = updates
            .iter()
            .map(|u| text(u, &["status", "uuid"]))
            .collect();
        let open = self
            .order
            .iter()
            .filter(|uuid| self.updates.get(*uuid).is_some_and(|(_, acked)| !acked));
        let open: Vec<String> = open.cloned().collect();
        let again: Vec<&str> = told
            .iter()
            .copied()
            .filter(|uuid| open.iter().any(|o| o == uuid))
            .collect();
        if again != open {
            self.violation(format!(
                "SUBSCRIBE with the updates {again:?} instead of {open:?}"
            ));
        }
    }

    /// A status of the executor.
    fn update(&mut self, status: Value) {
        let name = text(&status, &["task_id", "value"]).to_owned();
        let uuid = text(&status, &["uuid"]).to_owned();
        let agent = at(&status, &["agent_id", "value"]).and_then(Value::as_str);
        if agent.is_some_and(|agent| agent != self.ids.agent) {
            return self.violation(format!("{name}: update for another agent"));
        }
        let Some(task) = self.tasks.get(&name).filter(|task| task.delivered) else {
            return self.violation(format!("{name}: update for an unknown task"));
        };
        match self.updates.get(&uuid) {
            Some((before, _)) if *before != status => {
                self.violation(format!("{name}: uuid {uuid} again with another content"));
            }
            Some(_) => {}
            None => {
                let of_executor = |status: &&Value| text(status, &["source"]) == "SOURCE_EXECUTOR";
                let before = task.statuses.iter().rev().find(of_executor);
                let wrong = rules::follows(before, &status, &self.settings.capabilities);
                let over = task.over();
                let last = task.statuses.last().map(|last| text(last, &["source"]));
                let given_up = over && last == Some("SOURCE_AGENT");
                if given_up {
                    let state = text(&status, &["state"]);
                    self.violation(format!("{name}: {state} after the agent has given it up"));
                }
                for wrong in wrong {
                    self.violation(format!("{name}: {wrong}"));
                }
                self.updates.insert(uuid.clone(), (status.clone(), false));
                self.order.push(uuid.clone());
                self.record("status", status.clone());
                if let Some(task) = self.tasks.get_mut(&name).filter(|_| !over) {
                    task.statuses.push(status);
                }
            }
        }
        match self.acks {
            Acks::Given => self.acknowledge(&name, &uuid),
            Acks::Twice => {
                self.acknowledge(&name, &uuid);
                self.acknowledge(&name, &uuid);
            }
            Acks::Held => self.held.push((name, uuid)),
            Acks::Lost => {}
        }
    }
}
