//! The figures, as a table and as JSON.

use comfy_table::{Table, presets};
use serde::Serialize;

use super::rounds::Cost;

/// Everything that was measured in one run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The machine: kernel and processor.
    pub machine: String,
    /// One for each kind of packet.
    pub cells: Vec<Cell>,
}

/// One kind of packet.
#[derive(Debug, Serialize)]
pub struct Cell {
    /// Its name, for `--only`.
    pub name: String,
    /// What the packet is, and what becomes of it.
    pub what: String,
    /// What it costs above the floor.
    pub cost: Cost,
    /// What it is compared with.
    pub base: String,
    /// What that costs above the floor.
    pub base_cost: Cost,
    /// The one by the other: the median over rounds of their quotient, since both were measured within
    /// milliseconds in each.
    pub multiple: f64,
    /// What the multiple should be at most.
    pub goal: Option<f64>,
    /// Whether it is.
    pub is_held: Option<bool>,
}

impl Cell {
    /// Compares what was measured in as many rounds.
    pub fn new(
        name: impl Into<String>,
        what: impl Into<String>,
        rounds: &[f64],
        base: impl Into<String>,
        base_rounds: &[f64],
        goal: Option<f64>,
    ) -> Self {
        let quotients: Vec<_> = rounds.iter().zip(base_rounds).map(|(ours, base)| ours / base).collect();
        let multiple = Cost::of(&quotients).ns;
        Self {
            name: name.into(),
            what: what.into(),
            cost: Cost::of(rounds),
            base: base.into(),
            base_cost: Cost::of(base_rounds),
            multiple,
            goal,
            is_held: goal.map(|goal| multiple <= goal),
        }
    }
}

impl Report {
    /// Nothing measured yet.
    pub fn new() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let kernel = read("/proc/sys/kernel/osrelease");
        let processor = read("/proc/cpuinfo");
        let model = processor
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
        Self {
            machine: format!("Linux {}, {}", kernel.trim(), model.unwrap_or("unknown processor")),
            cells: Vec::new(),
        }
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["CELL", "NS", "QUARTILES", "BASE", "BASE NS", "MULTIPLE", "GOAL", "HELD"]);
        for cell in &self.cells {
            table.add_row([
                cell.name.clone(),
                format!("{:.1}", cell.cost.ns),
                format!("{:.1} .. {:.1}", cell.cost.lower, cell.cost.upper),
                cell.base.clone(),
                format!("{:.1}", cell.base_cost.ns),
                format!("{:.2}", cell.multiple),
                cell.goal.map_or_else(|| "-".into(), |goal| format!("{goal:.1}")),
                cell.is_held.map_or("-", |held| if held { "yes" } else { "NO" }).into(),
            ]);
        }
        let cells = self
            .cells
            .iter()
            .map(|cell| format!("  {:12} {}\n", cell.name, cell.what));
        format!(
            "Nanoseconds of fairway_xdp for a packet above an empty program, on {}\n\n{table}\n\nCells:\n{}",
            self.machine,
            cells.collect::<String>()
        )
    }
}
