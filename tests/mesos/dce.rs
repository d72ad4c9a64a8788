//! An application of dce-go as it is: compose files in the sandbox, one of which names the volumes of another service.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::json;

use crate::pod_support::until;
use crate::support::*;

/// The shape of dce-go's sample: an application, and nginx before it with the application's files.
const BASE: &str = "version: \"2.1\"
services:
  web:
    image: localhost/busybox
    working_dir: /src/app
    command: [sh, -c, 'exec busybox httpd -f -p 8081 -h /src/app']
    stop_signal: KILL
    volumes:
      - \"./app:/src/app\"
    ports:
      - \"8081:8081\"
  nginx:
    image: localhost/nginx
    ports:
      - \"80:80\"
    volumes:
      - /www/public
      - ./site.conf:/etc/nginx/conf.d/default.conf:ro
    volumes_from:
      - web
";

const HEALTH: &str = "version: \"2.1\"
services:
  web:
    healthcheck:
      test: wget -q -O /dev/null http://localhost:8081/index.html
      interval: 1s
      timeout: 10s
      retries: 3
";

const SITE: &str = "server {
  listen 80;
  location /public { alias /src/app/public; }
  location / { proxy_pass http://localhost:8081; }
}
";

fn page(port: u16, path: &str) -> String {
    until(&format!("{port}{path} answers"), || {
        let mut text = String::new();
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        head.contains(" 200 ").then(|| body.to_owned())
    })
}

#[test]
fn the_sample_application() {
    let mesos = Mesos::new();
    mesos.host.import("nginx");
    let sandbox = mesos.agent.sandbox();
    std::fs::create_dir_all(sandbox.join("app/public")).unwrap();
    for (name, text) in [
        ("docker-compose.yml", BASE),
        ("docker-compose-healthcheck.yml", HEALTH),
        ("site.conf", SITE),
        ("app/index.html", "the application\n"),
        ("app/public/logo.txt", "its logo\n"),
    ] {
        std::fs::write(sandbox.join(name), text).unwrap();
    }
    let files = "docker-compose.yml,docker-compose-healthcheck.yml";
    let mut task = labelled("sample", &[("org.apache.aurora.metadata.fileName", files)]);
    task["resources"].as_array_mut().unwrap().push(json!({
        "name": "ports", "type": "RANGES", "ranges": {"range": [{"begin": 31000, "end": 31001}]},
        "allocation_info": {"role": "*"},
    }));
    task["resources"][1]["scalar"]["value"] = json!(128.0);
    mesos.agent.launch(task);
    mesos.start();
    mesos.wait("sample", "RUNNING");
    // nginx is the first by name
    assert_eq!(page(31000, "/"), "the application\n");
    assert_eq!(page(31000, "/public/logo.txt"), "its logo\n");
    assert_eq!(page(31001, "/index.html"), "the application\n");
    mesos
        .agent
        .wait_status("healthy", "sample", |status| status["healthy"] == true);
    mesos.agent.kill("sample", None);
    mesos.ends(0);
    let states = mesos.states("sample");
    assert!(
        ["STARTING RUNNING KILLED", "STARTING RUNNING RUNNING KILLED"].contains(&states.as_str()),
        "{states}"
    );
}
