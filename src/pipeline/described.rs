//! What the stream describes: a table's columns, which are matched with its attributes and its history, and partitions. Pure.

use std::sync::Arc;

use super::{Altered, Followed, Known, Outcome, Pipeline, PipelineError, RELATIONS_MAX};
use crate::lsn::Lsn;
use crate::pgoutput;
use crate::schema::TableName;
use crate::schema::layout::{self, Assigned, Described};
use crate::schema::partitions::can_be_partition;
use crate::schema::plan::{Plan, PlanError, Shape};

impl Pipeline {
    /// Takes the description of a partition of `root`, which follows that of its table; `None`: it is another table's.
    pub(super) fn partition(
        &mut self,
        root: u32,
        relation: &pgoutput::Relation<'_>,
    ) -> Result<Option<Outcome>, PipelineError> {
        let mut sources = self.captured.iter().map(|captured| &captured.source);
        let is_captured = sources.any(|source| source.oid == relation.oid);
        let Some(Known::Captured(followed)) = self.relations.get_mut(&root) else {
            return Ok(None);
        };
        let source = &self.captured[followed.table].source;
        let described = Shape::of_relation(relation)?;
        if is_captured || !can_be_partition(source, &followed.shape, &described) {
            return Ok(None);
        }
        let shape = &followed.shape;
        let lacking = self
            .partitions
            .describe(root, source, shape, relation, &described);
        let mut plan = Plan::clone(&followed.plan);
        self.partitions.apply(root, &mut plan);
        if plan != *followed.plan {
            followed.plan = Arc::new(plan);
            followed.plan_id = self.next_plan_id;
            self.next_plan_id += 1;
        }
        self.relations.insert(relation.oid, Known::Ignored);
        Ok(Some(match lacking {
            Some(lacking) => Outcome::Lacking(Box::new(lacking)),
            None => Outcome::Quiet,
        }))
    }

    /// The plan for relation `oid` of this shape, which is `captured[table]`.
    fn plan(&mut self, oid: u32, table: usize, shape: &Shape) -> Result<Plan, PlanError> {
        let captured = &self.captured[table];
        let (source, history) = (&captured.source, &captured.history);
        let mut plan = Plan::new(shape, source, history, &captured.rules, self.binary)?;
        plan.gated = captured.gated;
        if captured.absent_unknown {
            plan.name_absent(shape, source, history, &captured.rules);
        }
        if source.kind == 'p' {
            if let Some(Known::Captured(before)) = self.relations.get(&oid)
                && !before.shape.has_columns_of(shape)
            {
                self.partitions.forget(oid);
            }
            self.partitions.apply(oid, &mut plan);
            self.described = Some(oid);
        }
        Ok(plan)
    }

    pub(super) fn relation(
        &mut self,
        relation: &pgoutput::Relation<'_>,
    ) -> Result<Outcome, PipelineError> {
        if self.relations.len() >= RELATIONS_MAX {
            return Err(PipelineError::TooManyRelations);
        }
        let shape = Shape::of_relation(relation)?;
        // An empty schema stands for pg_catalog, which is never captured.
        let name = TableName {
            schema: relation.schema.to_owned(),
            name: relation.name.to_owned(),
        };
        let commit_lsn = self.assembler.open()?.commit_lsn;
        let is_news = commit_lsn >= self.catalogs_at;
        if let Some(Known::Captured(followed)) = self.relations.get(&relation.oid)
            && followed.shape == shape
            && (self.captured[followed.table].source.name == name || !is_news)
            && let table = followed.table
            && self
                .attributes(table, relation.oid, &shape, is_news)
                .is_none_or(|assigned| assigned.attributes == followed.attributes)
        {
            let kind = self.captured[table].source.kind;
            self.described = (kind == 'p').then_some(relation.oid);
            if is_news {
                self.describe_again(relation.oid)?;
            }
            return Ok(Outcome::Quiet);
        }
        let by_oid = self
            .captured
            .iter()
            .position(|captured| captured.source.oid == relation.oid);
        // Another table of the same name is not the one that is followed: the watch of the source notices it.
        let Some(table) = by_oid else {
            self.relations.insert(relation.oid, Known::Ignored);
            return Ok(Outcome::Quiet);
        };
        self.follow(relation.oid, table, shape, name, is_news)
    }

    /// Relation `oid` is described as before: a column can have been dropped and made again, which the catalogs will say.
    fn describe_again(&mut self, oid: u32) -> Result<(), PipelineError> {
        let tx = self.assembler.open()?;
        if let Some(Known::Captured(followed)) = self.relations.get_mut(&oid)
            && !followed.opening.is_empty()
        {
            followed.is_news = true;
            let mut plan = Plan::clone(&followed.plan);
            plan.opening = layout::noted(&followed.opening, &plan.history, tx);
            self.noted = Some(tx.commit_lsn);
            followed.plan = Arc::new(plan);
            followed.plan_id = self.next_plan_id;
            self.next_plan_id += 1;
        }
        Ok(())
    }

    /// The attributes of the columns of this shape, after those of the rows before. `is_news`: it is no older than the catalogs.
    fn attributes(&self, table: usize, oid: u32, shape: &Shape, is_news: bool) -> Option<Assigned> {
        let layout = &self.captured[table].layout;
        let described = match self.relations.get(&oid) {
            Some(Known::Captured(followed)) if !followed.attributes.is_empty() => Some(followed),
            _ => None,
        };
        let before = described.map_or(&layout.before, |followed| &followed.attributes);
        // Described since the catalogs were read, and now again: what has come is not in them, and what has gone does not come
        // back.
        let is_ahead = is_news && described.is_some_and(|followed| followed.is_news);
        let is_now = is_news || layout.is_only_now(before, shape);
        let open = self.assembler.peek();
        let tx = Described {
            commit_lsn: open.map_or(Lsn::ZERO, |open| open.commit_lsn),
            xid: open.map_or(0, |open| open.xid),
            is_news: is_now,
        };
        let is_gone = |attnum| layout.was_dropped_by(attnum, tx);
        layout.assign(before, &shape.columns, is_gone, is_ahead)
    }

    /// From now on relation `oid`, which is `captured[table]`, has this shape.
    fn follow(
        &mut self,
        oid: u32,
        table: usize,
        shape: Shape,
        name: TableName,
        is_news: bool,
    ) -> Result<Outcome, PipelineError> {
        let captured = &self.captured[table];
        let renamed = match self.relations.get(&oid) {
            Some(Known::Captured(before)) => before.shape.renamed_in(&shape),
            _ if is_news => Shape::of_table(&captured.source).renamed_in(&shape),
            _ => None,
        };
        let assigned = self.attributes(table, oid, &shape, is_news);
        // The catalogs may know more by now.
        let is_assigned = captured.layout.now.is_empty()
            || !is_news
            || assigned.as_ref().is_some_and(|assigned| !assigned.renamed);
        let is_prepared = captured.settled.contains(&shape)
            || renamed.is_none() && is_assigned && !captured.has_to_prepare_for(&shape, is_news);
        // A new start looks for the table by its OID.
        let is_moved = is_news && captured.source.name != name;
        if is_moved || !is_prepared {
            return Err(PipelineError::Altered(Box::new(Altered {
                table: name,
                oid,
                shape,
                renamed,
            })));
        }
        let mut plan = self.plan(oid, table, &shape)?;
        let attributes = assigned.map_or_else(Vec::new, |assigned| assigned.attributes);
        let opening = match attributes.is_empty() {
            true => String::new(),
            false => {
                let homes = plan.homes.iter().map(|[home, _]| home.as_str());
                let layout = &self.captured[table].layout;
                layout.opening(&plan.history, std::iter::zip(&attributes, homes))
            }
        };
        plan.opening = match is_news && !opening.is_empty() {
            true => {
                let tx = self.assembler.open()?;
                self.noted = Some(tx.commit_lsn);
                layout::noted(&opening, &plan.history, tx)
            }
            false => opening.clone(),
        };
        let columns = plan.unrecorded.clone();
        let followed = Followed {
            plan_id: self.next_plan_id,
            plan: Arc::new(plan),
            shape,
            attributes,
            opening,
            is_news,
            table,
        };
        self.next_plan_id += 1;
        self.relations.insert(oid, Known::Captured(followed));
        Ok(match columns.is_empty() {
            true => Outcome::Quiet,
            false => Outcome::Unrecorded {
                table: name,
                columns,
            },
        })
    }
}
