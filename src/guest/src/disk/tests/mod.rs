//! The driver against a device in memory: a right one is never accused, a wrong one always found.

mod faults;
mod ledger;
mod model;
mod pieces;
mod plan;
mod runs;

use crate::abi;
use crate::disk::{Counters, Failure};
use crate::params::Params;
use crate::platform::Platform;
use crate::workload::Worker;
use model::Model;
use plan::Plan;

/// Ticks that a look at the clock takes; a step is a thousand.
const LOOK: u64 = 50;

struct Host {
    model: Model,
    tsc: u64,
    vcpu: usize,
    commands: Vec<u32>,
    results: Vec<Option<u32>>,
    ready: u32,
    beats: Vec<u64>,
    said: Vec<String>,
    slept: u64,
}

impl Platform for Host {
    fn tsc(&mut self) -> u64 {
        self.tsc += LOOK;
        self.model.turn();
        self.tsc
    }
    fn heartbeat(&mut self, _: u64) {}
    fn command(&mut self) -> u32 {
        std::mem::take(&mut self.commands[self.vcpu])
    }
    fn sleep_us(&mut self, us: u32) {
        self.tsc += u64::from(us);
        self.slept += u64::from(us);
    }
    fn verified(&mut self, result: u32) {
        assert_eq!(self.results[self.vcpu].replace(result), None);
    }
    fn ready(&mut self) {
        self.ready += 1;
    }
    fn registers_intact(&mut self) -> bool {
        true
    }
    fn mmio_read32(&mut self, addr: u64) -> u32 {
        self.model.read(addr)
    }
    fn mmio_write32(&mut self, addr: u64, value: u32) {
        self.model.write(addr, value);
    }
    fn disk_beat(&mut self, completed: u64) {
        self.beats[self.vcpu] = completed;
    }
    fn disk_failed(&mut self, failure: &Failure) {
        self.said.push(failure.to_string());
    }
}

struct Rig {
    memory: Vec<[u64; 512]>,
    params: Params,
    host: Host,
}

impl Rig {
    /// Not begun yet.
    fn make(line: &str) -> Self {
        let line = format!("ws-mib=1 fill-mib=1 disk-mib=1 tsc-khz=1000 {line}");
        let params = Params::parse(line.as_bytes());
        let n = params.vcpus as usize;
        let host = Host {
            model: Model::new(params.disk_blocks as usize, n),
            tsc: 0,
            vcpu: 0,
            commands: vec![0; n],
            results: vec![None; n],
            ready: 0,
            beats: vec![0; n],
            said: Vec::new(),
            slept: 0,
        };
        Self {
            memory: vec![[0; 512]; params.arena_pages() as usize + 1],
            params,
            host,
        }
    }

    fn begin(&mut self) {
        for _ in 0..20 {
            self.steps(1);
        }
        assert_eq!(u64::from(self.host.ready), self.params.vcpus);
    }

    fn new(line: &str) -> Self {
        let mut rig = Self::make(line);
        rig.begin();
        assert_eq!(rig.host.said, [""; 0]);
        rig
    }

    fn arena(&mut self) -> *mut u8 {
        let at = self.memory.as_mut_ptr().cast::<u8>();
        // SAFETY: one page more than needed was allocated.
        unsafe { at.add(at.align_offset(4096)) }
    }

    /// So many steps of each vCPU, by turns. Each begins from nothing but what is in RAM.
    fn steps(&mut self, n: u32) {
        let (arena, params) = (self.arena(), self.params);
        self.host.model.attach(arena, params.arena_pages() * 4096);
        for _ in 0..n {
            for index in 0..params.vcpus as u32 {
                self.host.vcpu = index as usize;
                // SAFETY: the memory outlives the worker, which is alone.
                let mut worker = unsafe { Worker::new(arena, params, index) };
                worker.step(&mut self.host);
            }
        }
    }

    /// What each vCPU says within `steps`.
    fn command(&mut self, command: u32, steps: u32) -> Vec<Option<u32>> {
        self.host.commands.fill(command);
        self.host.results.fill(None);
        for _ in 0..steps {
            self.steps(1);
            if self.host.results.iter().all(Option::is_some) {
                break;
            }
        }
        self.host.results.clone()
    }

    fn assert_right(&mut self) {
        for command in [abi::COMMAND_VERIFY, abi::COMMAND_VERIFY_SETTLED] {
            let results = self.command(command, 3000);
            assert_eq!(self.host.said, [""; 0]);
            assert!(
                results.iter().all(|&r| r == Some(abi::VERIFY_OK)),
                "{results:?}"
            );
        }
    }

    fn counters(&mut self, vcpu: u32) -> Counters {
        let arena = self.arena();
        // SAFETY: the arena's first page.
        let page = unsafe { std::slice::from_raw_parts(arena, 4096) };
        Counters::of(page, vcpu).expect("a page")
    }

    fn plan(&mut self, plan: Plan) {
        self.host.model.plan = plan;
    }
}
